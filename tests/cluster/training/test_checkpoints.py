"""Checkpoints on their way: beside training, through storage that fails and disks that fill, and
back from files that are not what was written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.train import PreemptionInfo
from safetensors.torch import load_file

from cluster.errors import DataError, DiskFull, PlainError, UsageError
from cluster.runs import evaluations, run_folder
from cluster.storage import files, s3
from cluster.training import checkpoints
from cluster.training.checkpoints import NOTICE_STEPS, Checkpoints
from detector.checkpoint import Snapshot, take_snapshot
from tests.support.faulty_s3 import FaultyS3, Rule

# One attempt: an upload that meets a fault has failed.
HASTY = s3.Patience(attempts=1, connect_seconds=2, stall_seconds=1, again_seconds=0)
SETTINGS = {"keep_checkpoints": 2, "checkpoint_images": 0, "checkpoint_minutes": 0}


class Run:
    """Rank 0's checkpoints of a run below `store`, and what they told. Another one on the same
    `disk` is the worker started again.
    """

    def __init__(
        self,
        store: str,
        disk: Path,
        *,
        run_uuid: str = "first",
        writes: bool = True,
        **settings: Any,
    ) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[tuple[str, int, int]] = []
        self.uri = f"{store}/runs/cells"
        self.checkpoints = Checkpoints(
            self.uri,
            run_uuid=run_uuid,
            settings={**SETTINGS, "checkpoint_folder": str(disk), **settings},
            tell=lambda kind, **values: self.told.append((kind, values)),
            writes=writes,
            ask=lambda *values: self.asked.append(values),
        )

    def save(self, images_seen: int, *, scored: bool = False, values: int = 3) -> str:
        def take(memory: Snapshot | None) -> Snapshot:
            state = {"images_seen": images_seen, "epoch": images_seen // 100, "scored": scored}
            return Snapshot(
                {"x": torch.full((values,), float(images_seen))},
                None,
                {"step": torch.tensor(1.0)},
                None,
                state,
            )

        return self.checkpoints.save(images_seen, take, scored=scored)

    def settle(self) -> None:
        """Until the threads have nothing to do."""
        self.checkpoints.writing.result()
        self.checkpoints.uploading.result()

    @property
    def stored(self) -> list[int]:
        return [int(uri[-12:]) for uri in run_folder.checkpoints(self.uri)]

    @property
    def warnings(self) -> list[str]:
        return [values["text"] for kind, values in self.told if kind == "warning"]

    def newest(self, folder: Path) -> int | None:
        uri = self.checkpoints.newest(str(folder / "back"))
        if uri is None:
            return None
        (value,) = set(load_file(folder / "back" / "model.safetensors")["x"].tolist())
        assert uri == run_folder.checkpoint_uri(self.uri, int(value))
        return int(value)


@pytest.fixture
def behind(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FaultyS3]]:
    """Puts a proxy with these rules before the S3 server of `bucket`, and a client that tries once."""
    monkeypatch.setattr(s3, "PATIENT", HASTY)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with ExitStack() as stack:

        def start(*rules: Rule) -> FaultyS3:
            proxy = stack.enter_context(FaultyS3(endpoint, *rules))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            return proxy

        yield start


def test_the_newest_and_the_best_and_the_protected_are_kept(tmp_path: Path) -> None:
    run = Run(str(tmp_path), tmp_path / "disk")
    run.checkpoints.protected = lambda: {run_folder.checkpoint_uri(run.uri, 200)}
    best = run.save(100, scored=True)
    run.checkpoints.once_stored(
        best, lambda: run_folder.write(run.uri, run_folder.BEST, {"checkpoint": best})
    )
    # Half an upload of an earlier attempt.
    Path(run_folder.checkpoint_uri(run.uri, 150)).mkdir(parents=True)
    Path(run_folder.checkpoint_uri(run.uri, 150), "model.safetensors").write_bytes(b"half")
    for seen in (200, 300, 400, 500):
        run.settle()
        run.save(seen)
    run.checkpoints.close()
    assert run.stored == [100, 200, 400, 500]
    assert not Path(run_folder.checkpoint_uri(run.uri, 150)).exists()
    assert [values["images_seen"] for kind, values in run.told if kind == "checkpoint"] == [
        100,
        200,
        300,
        400,
        500,
    ]
    assert os.listdir(tmp_path / "disk") == []


def test_a_checkpoint_that_becomes_the_best_while_others_are_deleted_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(str(tmp_path), tmp_path / "disk", keep_checkpoints=1)
    first = run.save(100)
    run.settle()
    evaluations.store_request(run.uri, evaluations.Request(first, 100, 1))
    evaluation = evaluations.Evaluation(first, 100, 1, metrics={"AP": 0.5})
    left = [lambda: evaluations.store(run.uri, evaluation)]

    def then_settle(read: Callable) -> Callable:
        """`read`, and the scorer's evaluation as soon as the first of the reads has answered."""

        def both(*arguments: Any) -> Any:
            answer = read(*arguments)
            if left:
                left.pop()()
            return answer

        return both

    run.checkpoints.protected = then_settle(lambda: set(evaluations.waiting(run.uri)))
    monkeypatch.setattr(run_folder, "read", then_settle(run_folder.read))
    run.save(200)
    run.checkpoints.close()
    assert left == [] and evaluations.waiting(run.uri) == []
    assert run.stored == [100, 200]


@pytest.mark.parametrize("fault", ["answer", "reset", "stall"])
def test_training_goes_on_while_storage_is_away_and_the_next_one_arrives(
    bucket: str, behind: Callable, tmp_path: Path, fault: str
) -> None:
    proxy = behind(Rule(fault, method="PUT", times=1))
    run = Run(bucket, tmp_path)
    first = run.save(100)
    run.settle()
    assert (run.stored, len(run.warnings)) == ([], 1)
    assert (
        "checkpoint images-000000000100 is not in storage yet, training goes on" in run.warnings[0]
    )
    run.save(200)
    run.checkpoints.close()
    # The first is superseded: the newest is what a restart needs.
    assert (run.stored, len(run.warnings), proxy.faults) == ([200], 1, 1)
    assert not files.exists(f"{first}/state.json")


def test_what_passes_within_the_patience_is_not_noticed(
    bucket: str, behind: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind(Rule("answer", method="PUT", times=1), Rule("reset", method="PUT", skip=1, times=1))
    monkeypatch.setattr(s3, "PATIENT", HASTY._replace(again_seconds=60))
    run = Run(bucket, tmp_path)
    run.save(100)
    run.checkpoints.close()
    assert (run.stored, run.warnings) == ([100], [])


def test_one_that_is_to_be_scored_arrives_although_newer_ones_follow(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    away = Rule("answer", method="PUT", times=float("inf"))
    behind(away)
    run = Run(bucket, tmp_path, keep_checkpoints=3)
    scored, arrived = [], []
    for seen in (100, 200, 300, 400, 500):
        uri = run.save(seen, scored=seen in (100, 300))
        run.settle()
        if seen in (100, 300):
            scored.append(uri)
            run.checkpoints.once_stored(uri, lambda uri=uri: arrived.append(uri))
    assert arrived == []
    # The disk holds what counts and no more: each failed attempt has dropped what was superseded.
    assert [int(name[-12:]) for name in run.checkpoints.waiting()] == [100, 300, 500]
    away.times = 0
    run.checkpoints.close()
    assert sorted(arrived) == scored and run.stored == [100, 300, 500]


def test_no_more_wait_to_be_scored_than_are_kept(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    behind(Rule("answer", method="PUT", times=float("inf")))
    run = Run(bucket, tmp_path, keep_checkpoints=1)
    for seen in (100, 200, 300):
        run.save(seen, scored=True)
        run.settle()
    assert [int(name[-12:]) for name in run.checkpoints.waiting()] == [200, 300]
    assert [text for text in run.warnings if "given up" in text] == [
        "checkpoint images-000000000100 is given up: 1 newer ones wait for storage too"
    ]


def test_a_record_that_storage_does_not_take_is_written_later(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    behind(Rule("answer", method="PUT", path="best.json", times=1))
    run = Run(bucket, tmp_path)
    uri = run.save(100, scored=True)
    run.settle()
    run.checkpoints.once_stored(
        uri, lambda: run_folder.write(run.uri, run_folder.BEST, {"checkpoint": uri})
    )
    run.checkpoints.close()
    assert run_folder.read(run.uri, run_folder.BEST) == {"checkpoint": uri}
    assert ["a record is not in storage yet" in text for text in run.warnings] == [True]


def test_a_worker_started_again_uploads_what_was_left(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    """The end of training says that the last one did not arrive; the next worker on this node goes
    on from it, one of another run does not.
    """
    away = Rule("answer", method="PUT", path="000200", times=float("inf"))
    behind(away)
    run = Run(bucket, tmp_path / "disk")
    run.save(100)
    run.settle()
    run.save(200)
    with pytest.raises(
        PlainError,
        match=(
            r"images-000000000200/.* cannot be written: .*overloaded or unhealthy.*the last checkpoints"
            r" wait in"
        ),
    ):
        run.checkpoints.close()
    away.times = 0
    # The same URI, deleted and made again.
    assert Run(bucket, tmp_path / "disk", run_uuid="second").newest(tmp_path) == 100
    again = Run(bucket, tmp_path / "disk")
    assert again.newest(tmp_path) == 200
    assert again.checkpoints.waiting() == [] and again.stored == [100, 200]
    # It is there: a second save of the same place writes nothing.
    again.save(200)
    assert again.checkpoints.writing is None


def test_a_worker_started_again_uploads_what_is_to_be_scored_and_asks_for_it(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    """Storage is away from the second one on, and comes back only after the worker has died."""
    away = [
        Rule("answer", method="PUT", path=f"000{seen}", times=float("inf"))
        for seen in (200, 300, 400)
    ]
    behind(*away)
    run = Run(bucket, tmp_path / "disk")
    for seen, scored in ((100, True), (200, True), (250, False), (300, True), (400, False)):
        run.save(seen, scored=scored)
        run.settle()
    assert run.checkpoints.waiting() == [f"images-{seen:012d}" for seen in (200, 300, 400)]
    for rule in away:
        rule.times = 0
    again = Run(bucket, tmp_path / "disk", keep_checkpoints=9)
    assert again.newest(tmp_path) == 400 and again.checkpoints.waiting() == []
    assert {100, 200, 300, 400} <= set(again.stored) and again.warnings == []
    # The first had arrived and was asked for then; the newest is the worker's own to have scored.
    assert again.asked == [
        (run_folder.checkpoint_uri(again.uri, seen), seen, seen // 100 + 1) for seen in (300, 200)
    ]


def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(tmp_path: Path) -> None:
    run = Run(str(tmp_path), tmp_path / "disk")
    for seen in (200, 300):
        run.save(seen)
        run.settle()
    truncate(Path(run_folder.checkpoint_uri(run.uri, 300)))
    again = Run(str(tmp_path), tmp_path / "disk")
    assert again.newest(tmp_path) == 200
    again.save(250)
    again.settle()
    # Two whole ones, and the damaged one for whoever wants to see it.
    assert again.stored == [200, 250, 300]
    again.save(300)
    again.settle()
    assert (
        again.stored == [250, 300] and Run(str(tmp_path), tmp_path / "disk").newest(tmp_path) == 300
    )


def test_what_was_left_is_not_uploaded_where_it_is_damaged_or_old(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "store"), tmp_path / "disk")
    for seen in (100, 200):
        run.save(seen)
        run.settle()
    for seen in (100, 300):
        shutil.copytree(
            run_folder.checkpoint_uri(run.uri, 200), f"{run.checkpoints.local}/images-{seen:012d}"
        )
    Path(run.checkpoints.local, "images-000000000300", "optimizer.pt").write_bytes(b"torn")
    again = Run(str(tmp_path / "store"), tmp_path / "disk")
    assert again.newest(tmp_path) == 200
    assert (
        again.checkpoints.waiting() == []
        and "images-000000000300: is damaged (optimizer.pt: has 4 bytes of" in again.warnings[0]
    )


def truncate(folder: Path) -> None:
    os.truncate(folder / "optimizer.pt", 100)


def lose(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def change_the_state(folder: Path) -> None:
    (folder / "state.json").write_text(
        (folder / "state.json").read_text().replace('"images_seen": 200', '"images_seen": 999')
    )


def cut_the_state(folder: Path) -> None:
    os.truncate(folder / "state.json", 40)


def lose_the_state(folder: Path) -> None:
    (folder / "state.json").unlink()


DAMAGES = [
    (truncate, "is damaged (optimizer.pt: has 100 bytes of "),
    (lose, "is damaged (model.safetensors: is missing)"),
    (flip_a_bit, "is damaged (model.safetensors: sha256 mismatch)"),
    (change_the_state, "is damaged (state.json: sha256 mismatch)"),
    (cut_the_state, "is damaged ("),
    (lose_the_state, "its upload did not end"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable, said: str
) -> None:
    run = Run(str(tmp_path), tmp_path / "disk")
    for seen in (100, 200):
        uri = run.save(seen)
        run.settle()
    damage(Path(uri))
    again = Run(str(tmp_path), tmp_path / "disk")
    assert again.newest(tmp_path) == 100
    (warning,) = again.warnings
    assert warning.startswith(f"{uri}: {said}") and warning.endswith(
        "; the checkpoint before it is taken"
    )
    # Training comes to the same place again and replaces it.
    again.save(200)
    again.checkpoints.close()
    assert Run(str(tmp_path), tmp_path / "disk").newest(tmp_path) == 200


def test_training_does_not_start_anew_where_all_are_damaged(tmp_path: Path) -> None:
    run = Run(str(tmp_path), tmp_path / "disk")
    assert run.newest(tmp_path) is None
    for seen in (100, 200):
        uri = run.save(seen)
        run.settle()
        flip_a_bit(Path(uri))
    with pytest.raises(DataError, match="none of its 2 checkpoints can be read"):
        Run(str(tmp_path), tmp_path / "disk").newest(tmp_path)


def test_a_disk_without_room_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(str(tmp_path), tmp_path / "disk")
    run.save(100)
    run.settle()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        DiskFull,
        match=(
            r"disk is full \(a checkpoint takes 41\d{5} bytes, 1000 are"
            r" free\).*--training.checkpoint_folder"
        ),
    ):
        run.save(200)
    assert Run(str(tmp_path), tmp_path / "disk").newest(tmp_path) == 100


def test_a_disk_with_room_for_one_waits_until_the_one_before_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, looked = Run(str(tmp_path), tmp_path / "disk"), threading.Event()
    usage, upload = shutil.disk_usage(tmp_path), files.upload_folder

    def disk_usage(path: str) -> Any:
        free = 1000 if run.checkpoints.waiting() else usage.free
        if free == 1000:
            looked.set()
        return usage._replace(free=free)

    def upload_folder(*given: Any, **settings: Any) -> None:
        assert looked.wait(10)
        upload(*given, **settings)

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(files, "upload_folder", upload_folder)
    run.save(100)
    run.save(200)
    run.checkpoints.close()
    assert run.stored == [100, 200] and run.warnings == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """300 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_under_way_leaves_the_last_one_whole(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SMALL_FILES", 0)
    run = Run(str(tmp_path), small_disk)
    run.save(100)
    run.settle()
    # 76,000 x 4 bytes and their names are more than 300 KiB, less the folders, leave.
    run.save(200, values=76_000)
    with pytest.raises(
        DiskFull, match=f"{small_disk}.*the disk is full.*the checkpoints before it are whole"
    ):
        run.checkpoints.close()
    with pytest.raises(DiskFull):
        run.checkpoints.due(200, 204)
    assert os.listdir(run.checkpoints.local) == []
    assert Run(str(tmp_path), small_disk).newest(tmp_path) == 100


def test_a_local_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=r"file/cells-\w+: cannot be written \(Not a directory\); name another"
    ):
        Run(str(tmp_path), tmp_path / "file")


def test_when_one_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices = iter([None, None])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(notices))
    by_images = Run(str(tmp_path), tmp_path / "disk", checkpoint_images=8).checkpoints
    assert [now for now in range(4, 44, 4) if by_images.due(now - 4, now)] == [8, 16, 24, 32, 40]
    by_time = Run(str(tmp_path), tmp_path / "disk", checkpoint_minutes=1)
    other_rank = Run(
        str(tmp_path), tmp_path / "disk", checkpoint_minutes=1, writes=False
    ).checkpoints
    assert not by_time.checkpoints.due(0, 4)
    by_time.checkpoints.saved_at -= 60
    other_rank.saved_at -= 60
    assert by_time.checkpoints.due(4, 8) and not other_rank.due(4, 8)
    by_time.save(8)
    assert not by_time.checkpoints.due(8, 12)
    by_time.checkpoints.close()


def test_a_notice_is_one_more_checkpoint_on_every_rank_at_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PreemptionInfo` is what `ray.train.get_preemption_info` gives all ranks once a node is being
    drained.
    """
    node = "a1b2c3d4e5f6"
    notice: list[PreemptionInfo | None] = [None]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: notice[0])
    ranks = [Run(str(tmp_path), tmp_path / "disk", writes=rank == 0) for rank in range(2)]

    def due_at(steps: int) -> list[list[int]]:
        return [
            [step for step in range(steps) if run.checkpoints.due(4 * step, 4 * step + 4)]
            for run in ranks
        ]

    assert due_at(NOTICE_STEPS + 1) == [[], []]
    notice[0] = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={node: [0]})
    # The next question comes after NOTICE_STEPS - 1 more; the same notice asks for no second one.
    assert due_at(3 * NOTICE_STEPS) == [[NOTICE_STEPS - 2], [NOTICE_STEPS - 2]]
    assert ranks[0].warnings == [
        "node a1b2c3d4 will be taken away; one more checkpoint is taken at 28 images"
    ]
    ranks[0].save(28)
    ranks[0].checkpoints.close()
    assert Run(str(tmp_path), tmp_path / "disk").newest(tmp_path) == 28


def test_a_snapshot_is_not_touched_by_what_follows_and_its_memory_is_used_again() -> None:
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(torch.ones(1, 3, 8, 8)).sum().backward()
        optimizer.step()

    step()
    first = take_snapshot(model=model, optimizer=optimizer, average=None, state={"images_seen": 1})
    before = model.weight.detach().clone()
    step()
    assert torch.equal(first.model["weight"], before) and not torch.equal(model.weight, before)
    again = take_snapshot(
        model=model, optimizer=optimizer, average=None, state={"images_seen": 2}, before=first
    )
    assert torch.equal(again.model["weight"], model.weight)
    assert again.model["weight"].data_ptr() == first.model["weight"].data_ptr()
    assert (
        again.optimizer["state"][0]["exp_avg"].data_ptr()
        == first.optimizer["state"][0]["exp_avg"].data_ptr()
    )
    assert again.optimizer["state"][0]["step"] == 2
