"""Shard jobs on Ray: how many at a time, what a failure or an interruption leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.errors import PlainError, UsageError
from cluster.formats.annotations import ImageRecord
from cluster.prepare.shard_job import ShardJob, find_report
from cluster.prepare.tasks import run_jobs
from cluster.shards import verify
from cluster.shards.index import ShardSet, open_shard_set
from tests.support.pictures import jpeg, noise, write_coco
from tests.support.preparing import (
    plan_coco,
    quiet,
    write_on_ray,
)

ROOT = Path(__file__).parents[3]


def test_jobs_are_made_when_a_task_is_free_for_them(
    small_coco: Path, ray_cluster: str, tmp_path: Path
) -> None:
    work = plan_coco(str(small_coco), str(tmp_path), shard_bytes=1)
    made: list[int] = []

    def make(number: int) -> ShardJob:
        made.append(number)
        return work.job(number)

    def look(line: str) -> None:
        # 4 CPUs: at most 4 running and one waiting, besides those that are done.
        assert len(made) <= int(line.split()[0]) + 5

    assert len(run_jobs(make, range(24), total=24, say=look)) == len(made) == 24


def test_nodes_that_join_later_get_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    cpus, under_way = iter([1, 1, 3, 3, 3, 3]), []

    def wait(running: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        under_way.append(len(running))
        return running[:1], running[1:]

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": next(cpus)})
    monkeypatch.setattr(
        ray,
        "remote",
        lambda **options: lambda function: SimpleNamespace(remote=lambda job: f"report {job}"),
    )
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    found = run_jobs(str, range(6), total=6, say=quiet)
    assert found == {number: f"report {number}" for number in range(6)}
    # One more than there are CPUs: two with one, four with three, until none waits.
    assert under_way == [2, 2, 4, 3, 2, 1]


def test_a_worker_failure_is_one_plain_line(ray_cluster: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": jpeg(noise(20, 30))})
    work = plan_coco(folder, str(tmp_path / "out"))
    (tmp_path / "out").mkdir(exist_ok=True)
    # A folder in the place of the shard: it cannot be replaced by a file.
    (tmp_path / "out" / work.job(0).name).mkdir()
    with pytest.raises(PlainError) as caught:
        write_on_ray(work)
    assert "cannot be written" in str(caught.value) and "Traceback" not in str(caught.value)


def test_after_a_failure_running_jobs_finish_their_shards(ray_cluster: str, tmp_path: Path) -> None:
    def job(number: int) -> ShardJob:
        image = ImageRecord(number, "a.jpg", 20, 30, ())
        return ShardJob(
            f"{number}.parquet",
            (image,),
            (str(tmp_path),),
            str(tmp_path / "out"),
            8,
            10**6,
            (1,),
            "f",
        )

    (tmp_path / "a.jpg").write_bytes(jpeg(noise(20, 30)))
    (tmp_path / "out" / "0.parquet").mkdir(parents=True)
    with pytest.raises(PlainError, match="cannot be written"):
        run_jobs(job, [0, 1, 2], total=3, say=print)
    assert find_report(job(1)) and find_report(job(2)), (
        "both were in flight: there are four CPUs and one task waits"
    )


class Stop(Exception):
    """Any event that ends a driver."""


def test_an_interrupted_run_is_continued(
    small_coco: Path, finished: ShardSet, ray_cluster: str, tmp_path: Path
) -> None:
    def stop_at_the_second(line: str) -> None:
        if line.startswith("2 of"):
            raise Stop

    with pytest.raises(Stop):
        write_on_ray(plan_coco(str(small_coco), str(tmp_path)), stop_at_the_second)
    with pytest.raises(UsageError, match="not a shard set"):
        open_shard_set(str(tmp_path))
    said: list[str] = []
    result = write_on_ray(plan_coco(str(small_coco), str(tmp_path)), said.append)
    assert "shards from a run that did not finish" in said[0]
    assert result.digest == finished.digest
    # Tasks of the interrupted run go on here, where its driver still lives, and may be about to
    # replace a shard by the same one.
    assert sorted(
        name for name in os.listdir(tmp_path) if not name.startswith(".partial-")
    ) == sorted(os.listdir(finished.uri))


@pytest.mark.integration
def test_a_killed_driver_leaves_no_set_and_a_second_run_finishes_it(
    ray_cluster: str, tmp_path: Path
) -> None:
    # Noise compresses badly: each file takes more than half a MiB, so each shard of at most one MiB
    # holds one.
    data = jpeg(noise(640, 800))
    assert 2**19 < len(data) < 2**20
    folder = write_coco(
        tmp_path / "coco", {f"{number:02d}.jpg": data for number in range(30)}, size=(640, 800)
    )
    command = [
        *(
            sys.executable,
            "-m",
            "pipelines.prepare",
            "--ray.address",
            ray_cluster,
            "--shard_size_mib",
            "1",
            "--row_group_rows",
            "2",
        ),
        *(
            "--annotations",
            f"{folder}/annotations/instances_train.json",
            "--images",
            f"{folder}/images/train",
        ),
        *("--output", str(tmp_path / "out")),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        seen = next((line for line in driver.stdout if "of 30 shards" in line), "")
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL and seen
    assert not (tmp_path / "out/index.json").exists()

    said: list[str] = []
    result = write_on_ray(plan_coco(folder, str(tmp_path / "out"), shard_bytes=2**20), said.append)
    assert "of 30 shards from a run that did not finish" in said[0]
    undisturbed = write_on_ray(plan_coco(folder, str(tmp_path / "other"), shard_bytes=2**20))
    assert result.num_rows == 30 and result.digest == undisturbed.digest
    verify.verify_shard_set(result)
