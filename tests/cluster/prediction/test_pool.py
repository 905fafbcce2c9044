"""Parts on Ray actors: each is done once, an actor that dies is replaced, and an outage ends the
work. The actors here need no network; the cluster has four CPUs, and each books 0.5 + 0.25.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import PlainError
from cluster.prediction import plan, pool
from cluster.prediction.overlays import OverlayJob, first_overlays
from cluster.prediction.part import PartJob, PartReport
from cluster.prediction.pool import FAILED_STARTS, Crew, Workers, draw_overlays, run_parts
from cluster.storage import files
from tests.support.predicting import Feed, write_pictures

pytestmark = pytest.mark.usefixtures("ray_cluster")


def workers_that(
    act: Callable[[PartJob, Path], None],
    notes: Path,
    *,
    number: int = 2,
    most: int | None = None,
    start: Any = None,
) -> Workers:
    """Actors that note each part that they begin, as a file, and then act."""
    notes.mkdir(exist_ok=True)
    begin = start or (lambda: None)

    class Actor:
        def __init__(self, package: Any, threads: int, device: str):
            begin()
            assert (package, threads, device) == ({"a": b"weights"}, 1, "cpu")

        def ready(self) -> str:
            import ray

            return ray.get_runtime_context().get_node_id()

        def predict(self, job: PartJob) -> PartReport:
            with open(notes / f"{job.number}", "a") as file:
                file.write("alone " if job.isolated else "together ")
            act(job, notes)
            return PartReport(job.number, 9, 1, 0.5)

    return Workers(number, most or number, 0.5, 0, {"a": b"weights"}, kind=Actor)


def crash() -> None:
    """A segmentation fault; another thread handles the signal."""
    os.kill(os.getpid(), 11)
    time.sleep(600)


def finished(uri: str, *, status: str = "ok") -> dict[str, Any]:
    """A row of a part."""
    found = {"boxes": [[9.0, 9.0, 40.0, 40.0]], "scores": [0.5], "labels": [0]}
    return {"uri": uri, "status": status, "height": 96, "width": 128, **found}


def noted(notes: Path) -> dict[int, list[str]]:
    """How each part was begun, each time."""
    return {int(path.name): path.read_text().split() for path in sorted(notes.iterdir())}


def run(workers: Workers, count: int, done: tuple[int, ...] = (), **options: Any) -> list[int]:
    job = PartJob("/out", 0, "claim", "", 1)
    reports = run_parts(
        workers, Feed(count), job, done=lambda number, images: number in done, **options
    )
    found = []
    for report in reports:
        assert (report.ok, report.failed) == (9, 1)
        found.append(report.number)
    return sorted(found)


def test_each_part_that_is_missing_is_done_once(tmp_path: Path) -> None:
    seen: list[Crew] = []
    workers = workers_that(lambda job, notes: None, tmp_path / "notes")
    assert run(workers, 7, done=(1, 4), look=seen.append) == [0, 2, 3, 5, 6]
    assert noted(tmp_path / "notes") == {number: ["together"] for number in (0, 2, 3, 5, 6)}
    assert max(crew.loaded for crew in seen) == 2
    assert Crew(0, 2) in seen and Crew(2, 0) in seen


def test_nothing_starts_where_all_is_done(tmp_path: Path) -> None:
    workers = workers_that(lambda job, notes: None, tmp_path / "notes", start=lambda: os._exit(1))
    assert run(workers, 3, done=(0, 1, 2)) == []


def test_the_part_of_a_worker_that_dies_is_done_again_and_no_other(tmp_path: Path) -> None:
    def die_once(job: PartJob, notes: Path) -> None:
        if job.number == 2 and noted(notes)[2] == ["together"]:
            os.kill(os.getpid(), 9)

    def noted(notes: Path) -> dict[int, list[str]]:
        return {2: (notes / "2").read_text().split()}

    assert run(workers_that(die_once, tmp_path / "notes"), 5) == [0, 1, 2, 3, 4]
    counts = {int(path.name): path.read_text().split() for path in (tmp_path / "notes").iterdir()}
    assert counts == {**{number: ["together"] for number in range(5)}, 2: ["together"] * 2}


def test_a_part_that_kills_two_workers_is_decoded_in_child_processes(tmp_path: Path) -> None:
    def die_together(job: PartJob, notes: Path) -> None:
        if job.number == 1 and not job.isolated:
            crash()
        if job.number == 3 and not job.isolated:
            raise MemoryError

    assert run(workers_that(die_together, tmp_path / "notes"), 4) == [0, 1, 2, 3]
    wanted = ["together", "together", "alone"]
    assert noted(tmp_path / "notes") == {0: ["together"], 1: wanted, 2: ["together"], 3: wanted}


def test_a_part_that_kills_every_worker_ends_the_work_in_one_line(tmp_path: Path) -> None:
    def die(job: PartJob, notes: Path) -> None:
        if job.number == 1:
            os.kill(os.getpid(), 9)

    with pytest.raises(PlainError, match="4 workers ended at part 1, also with each image decoded"):
        run(workers_that(die, tmp_path / "notes", number=1), 2)
    assert noted(tmp_path / "notes")[1] == ["together", "together", "alone", "alone"]


def test_workers_that_end_while_they_start_end_the_work(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("these weights do not fit")

    workers = workers_that(lambda job, notes: None, tmp_path / "notes", number=1, start=fail)
    with pytest.raises(PlainError, match=f"{FAILED_STARTS} workers ended .*weights do not fit"):
        run(workers, 2)


def test_an_outage_ends_the_work_and_other_parts_are_finished(tmp_path: Path) -> None:
    def act(job: PartJob, notes: Path) -> None:
        if job.number == 1:
            raise PlainError("s3://b/a.jpg: cannot be read: denied")
        (notes.parent / f"done-{job.number}").touch()

    with pytest.raises(PlainError, match="^s3://b/a.jpg: cannot be read: denied$"):
        run(workers_that(act, tmp_path / "notes"), 40)
    begun = {number for number in noted(tmp_path / "notes") if number != 1}
    assert begun == {int(path.name[5:]) for path in tmp_path.glob("done-*")}
    assert len(begun) < 39


def test_what_the_driver_is_told_ends_the_work(tmp_path: Path) -> None:
    def look(crew: Crew) -> None:
        raise PlainError("another driver has the folder")

    with pytest.raises(PlainError, match="another driver has the folder"):
        run(workers_that(lambda job, notes: None, tmp_path / "notes"), 3, look=look)


def test_overlays_are_drawn_by_tasks_and_one_that_fails_costs_no_other(tmp_path: Path) -> None:
    output, names = str(tmp_path / "out"), write_pictures(tmp_path / "pictures", 6)
    uris = [str(tmp_path / "pictures" / name) for name in names]
    (tmp_path / "pictures/004.png").unlink()
    for number, rows in enumerate(
        (
            [finished(uris[0]), finished(uris[1], status="error"), finished(uris[2])],
            [finished(uri) for uri in uris[3:]],
        )
    ):
        table = pa.Table.from_pylist(rows)
        files.write_bytes(f"{output}/parts/part-{number:06d}.parquet", plan.as_parquet(table))
    # The last part is gone: its overlays are lost and nothing else.
    jobs = [
        OverlayJob(output, number, first, count, ["cell"])
        for number, first, count in ((0, 0, 2), (1, 2, 3), (2, 5, 1))
    ]
    assert [(job.first, job.count) for job in first_overlays(jobs, 3)] == [(0, 2), (2, 1)]
    assert list(first_overlays(jobs, None)) == jobs
    seen: list[int] = []
    parts = list(draw_overlays(jobs, number=2, cpus=0.5, look=lambda: seen.append(1)))
    assert [(part.number, part.ok, part.failed) for part in parts] == [
        (0, 2, 0),
        (1, 2, 1),
        (2, 0, 1),
    ]
    failed = [lost for part in parts for lost in part.lost]
    assert sorted(path.name for path in Path(output, "overlays").iterdir()) == [
        "0000-000.png.png",
        "0001-002.png.png",
        "0002-003.png.png",
        "0004-005.png.png",
    ]
    assert len(failed) == 2 and failed[0].startswith(uris[4]) and "part 2" in failed[1]
    assert seen


def wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


def test_the_first_part_waits_for_the_fewest_workers_and_the_work_grows(tmp_path: Path) -> None:
    """Of 2..9 workers the cluster has room for five: 4 / 0.75."""
    seen: list[Crew] = []
    folder, five = tmp_path / "started", tmp_path / "five"
    folder.mkdir()

    def wait_for_five(job: PartJob, notes: Path) -> None:
        assert len(list(folder.iterdir())) >= 2
        wait_until(five.exists)

    def look(crew: Crew) -> None:
        seen.append(crew)
        if crew.loaded == 5:
            five.touch()

    workers = workers_that(
        wait_for_five,
        tmp_path / "notes",
        number=2,
        most=9,
        start=lambda: (folder / str(os.getpid())).touch(),
    )
    assert run(workers, 30, look=look) == list(range(30))
    assert Crew(0, 2) in seen and max(crew.loaded for crew in seen) == 5


def test_an_actor_begins_the_next_part_while_one_is_in_work(tmp_path: Path) -> None:
    def wait_for_next(job: PartJob, notes: Path) -> None:
        if job.number == 0:
            wait_until(lambda: (notes / "1").exists())

    workers = workers_that(wait_for_next, tmp_path / "notes", number=1)
    assert run(workers, 5) == [0, 1, 2, 3, 4]


def test_a_part_at_which_a_worker_died_has_the_next_one_alone(tmp_path: Path) -> None:
    """Part 1 shares a worker with part 0, whose decoder crashes twice: it is not suspected."""

    def die_together(job: PartJob, notes: Path) -> None:
        if job.number == 0 and not job.isolated:
            wait_until(lambda: (notes / "1").exists())
            crash()
        if job.number == 1 and "together together" not in (notes / "1").read_text():
            time.sleep(600)

    assert run(workers_that(die_together, tmp_path / "notes", number=1), 5) == [0, 1, 2, 3, 4]
    found = noted(tmp_path / "notes")
    assert found[0] == ["together", "together", "alone"] and found[1] == ["together"] * 2


def test_workers_that_are_lost_with_their_nodes_are_no_deaths_of_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_once(job: PartJob, notes: Path) -> None:
        if job.number == 1 and (notes / "1").read_text() == "together ":
            os.kill(os.getpid(), 9)

    monkeypatch.setattr(pool, "DEATHS_TOGETHER", 1)
    monkeypatch.setattr(pool, "DEATHS_ALONE", 0)
    # Ray lists other nodes than those on which the workers were.
    monkeypatch.setattr(pool, "_nodes", lambda: frozenset(["another"]))
    assert run(workers_that(die_once, tmp_path / "notes", number=1), 3) == [0, 1, 2]
    assert noted(tmp_path / "notes")[1] == ["together"] * 2
