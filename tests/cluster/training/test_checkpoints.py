"""Checkpoints on their way beside training: through storage that fails, to a worker that is started
again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import PlainError
from cluster.runs import evaluations, run_folder
from cluster.storage import files, s3
from tests.support.checkpoint_runs import HASTY, CheckpointRun
from tests.support.faulty_s3 import FaultyS3, Rule


@pytest.fixture
def behind(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FaultyS3]]:
    """Puts a proxy with these rules before the S3 server; the client tries once."""
    monkeypatch.setattr(s3, "PATIENT", HASTY)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with ExitStack() as stack:

        def start(*rules: Rule) -> FaultyS3:
            proxy = stack.enter_context(FaultyS3(endpoint, *rules))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            return proxy

        yield start


def test_the_newest_and_the_best_and_the_protected_are_kept(tmp_path: Path) -> None:
    run = CheckpointRun(str(tmp_path), tmp_path / "disk")
    run.protected = lambda: {run_folder.checkpoint_uri(run.uri, 200)}
    best = run.save(100, to_be_evaluated=True)
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
    assert run.uploaded == [100, 200, 300, 400, 500]
    assert os.listdir(tmp_path / "disk") == []


def test_a_checkpoint_that_becomes_the_best_while_others_are_deleted_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CheckpointRun(str(tmp_path), tmp_path / "disk", keep=1)
    first = run.save(100)
    run.settle()
    request = evaluations.Request(first, 100, 1)
    evaluations.store_request(run.uri, request)
    best = evaluations.Evaluation(first, 100, 1, weights="ema", metrics={"AP": 0.5})
    left = [lambda: evaluations.store(run.uri, best)]

    def then_settle(read: Callable) -> Callable:
        """`read`, and the scorer's verdict as soon as the first of the reads has answered."""

        def both(*arguments: Any) -> Any:
            answer = read(*arguments)
            if left:
                left.pop()()
            return answer

        return both

    run.protected = then_settle(lambda: set(evaluations.waiting(run.uri)))
    monkeypatch.setattr(run_folder, "read", then_settle(run_folder.read))
    run.save(200)
    run.checkpoints.close()
    assert left == [] and evaluations.waiting(run.uri) == []
    assert run.stored == [100, 200]


@pytest.mark.parametrize("fault", ["answer", "reset", "stall"])
def test_training_continues_during_an_outage_and_the_next_checkpoint_arrives(
    bucket: str,
    behind: Callable,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = behind(Rule(fault, method="PUT", times=1))
    run = CheckpointRun(bucket, tmp_path)
    if fault == "stall":
        # The client waits as long as this for an answer that does not come.
        monkeypatch.setattr(s3, "PATIENT", HASTY._replace(stall_seconds=1))
    first = run.save(100)
    run.settle()
    monkeypatch.setattr(s3, "PATIENT", HASTY)
    assert (run.stored, len(run.warnings)) == ([], 1)
    assert (
        "checkpoint images-000000000100 is not in storage yet, training continues"
        in run.warnings[0]
    )
    run.save(200)
    run.checkpoints.close()
    # The first is superseded: the newest is what a restart needs.
    assert (run.stored, len(run.warnings), proxy.faults) == ([200], 1, 1)
    assert not files.exists(f"{first}/state.json")


def test_an_outage_shorter_than_the_retries_is_not_reported(
    bucket: str, behind: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind(Rule("answer", method="PUT", times=1), Rule("reset", method="PUT", skip=1, times=1))
    monkeypatch.setattr(s3, "PATIENT", HASTY._replace(again_seconds=60))
    run = CheckpointRun(bucket, tmp_path)
    run.save(100)
    run.checkpoints.close()
    assert (run.stored, run.warnings) == ([100], [])


def test_a_checkpoint_to_be_evaluated_arrives_although_newer_ones_follow(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    away = Rule("answer", method="PUT", times=float("inf"))
    behind(away)
    run = CheckpointRun(bucket, tmp_path, keep=3)
    scored, arrived = [], []
    for seen in (100, 200, 300, 400, 500):
        uri = run.save(seen, to_be_evaluated=seen in (100, 300))
        run.settle()
        if seen in (100, 300):
            scored.append(uri)
            run.checkpoints.once_stored(uri, lambda uri=uri: arrived.append(uri))
    assert arrived == []
    # The disk holds what counts and no more: each failed attempt has dropped what was superseded.
    assert run.waiting == [100, 300, 500]
    away.times = 0
    run.checkpoints.close()
    assert sorted(arrived) == scored and run.stored == [100, 300, 500]


def test_at_most_as_many_wait_for_their_evaluation_as_the_run_keeps(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    behind(Rule("answer", method="PUT", times=float("inf")))
    run = CheckpointRun(bucket, tmp_path, keep=1)
    for seen in (100, 200, 300):
        run.save(seen, to_be_evaluated=True)
        run.settle()
    assert run.waiting == [200, 300]
    assert [text for text in run.warnings if "is dropped" in text] == [
        "checkpoint images-000000000100 is dropped: 1 newer ones wait for storage too"
    ]


def test_a_record_that_storage_refuses_is_written_later(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    behind(Rule("answer", method="PUT", path="best.json", times=1))
    run = CheckpointRun(bucket, tmp_path)
    uri = run.save(100, to_be_evaluated=True)
    run.settle()
    run.checkpoints.once_stored(
        uri, lambda: run_folder.write(run.uri, run_folder.BEST, {"checkpoint": uri})
    )
    run.checkpoints.close()
    assert run_folder.read(run.uri, run_folder.BEST) == {"checkpoint": uri}
    assert ["a record is not in storage yet" in text for text in run.warnings] == [True]


def test_a_restarted_worker_uploads_what_waits_on_its_node(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    """The end of training says that the last one did not arrive; the next worker on this node goes
    on from it, one of another run does not.
    """
    away = Rule("answer", method="PUT", path="000200", times=float("inf"))
    behind(away)
    run = CheckpointRun(bucket, tmp_path / "disk")
    run.save(100)
    run.settle()
    run.save(200)
    with pytest.raises(
        PlainError,
        match=(
            r"images-000000000200/.* cannot be written: .*overloaded or unhealthy"
            r".*the last checkpoints wait in"
        ),
    ):
        run.checkpoints.close()
    away.times = 0
    # The same URI, deleted and made again.
    assert CheckpointRun(bucket, tmp_path / "disk", run_uuid="second").newest(tmp_path) == 100
    again = CheckpointRun(bucket, tmp_path / "disk")
    assert again.newest(tmp_path) == 200
    assert again.waiting == [] and again.stored == [100, 200]
    # It is there: a second save of the same state writes nothing.
    before = list(again.told)
    again.save(200)
    again.settle()
    assert again.told == before


def test_a_restarted_worker_uploads_checkpoints_to_be_evaluated_and_requests_that(
    bucket: str, behind: Callable, tmp_path: Path
) -> None:
    """Storage is away from the second one on, and comes back only after the worker has died."""
    away = [
        Rule("answer", method="PUT", path=f"000{seen}", times=float("inf"))
        for seen in (200, 300, 400)
    ]
    behind(*away)
    run = CheckpointRun(bucket, tmp_path / "disk")
    for seen, scored in ((100, True), (200, True), (250, False), (300, True), (400, False)):
        run.save(seen, to_be_evaluated=scored)
        run.settle()
    assert run.waiting == [200, 300, 400]
    for rule in away:
        rule.times = 0
    again = CheckpointRun(bucket, tmp_path / "disk", keep=9)
    assert again.newest(tmp_path) == 400 and again.waiting == []
    assert {100, 200, 300, 400} <= set(again.stored) and again.warnings == []
    # The first had arrived and was asked for then; the newest is the worker's own to have scored.
    assert again.requested == [
        evaluations.Request(run_folder.checkpoint_uri(again.uri, seen), seen, seen // 100 + 1)
        for seen in (300, 200)
    ]


def test_damaged_or_old_checkpoints_on_the_node_are_not_uploaded(tmp_path: Path) -> None:
    run = CheckpointRun(str(tmp_path / "store"), tmp_path / "disk")
    for seen in (100, 200):
        run.save(seen)
        run.settle()
    for seen in (100, 300):
        shutil.copytree(
            run_folder.checkpoint_uri(run.uri, 200), f"{run.store.local.folder}/images-{seen:012d}"
        )
    Path(run.store.local.folder, "images-000000000300", "optimizer.pt").write_bytes(b"torn")
    again = CheckpointRun(str(tmp_path / "store"), tmp_path / "disk")
    assert again.newest(tmp_path) == 200
    assert (
        again.waiting == []
        and "images-000000000300: is damaged (optimizer.pt: has 4 bytes of" in again.warnings[0]
    )
