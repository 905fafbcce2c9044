"""A prediction by real processes: its driver, a worker or the storage fails, and the same command
finishes it with exactly one row an image.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from cluster.storage import files
from tests.support.faulty_s3 import FaultyS3, Rule
from tests.support.predicting import rows_of, write_pictures
from tests.support.ray_nodes import Nodes
from tests.support.trainings import environment
from tests.support.typed_prediction import begin, finish, parts, wait_for

pytestmark = pytest.mark.integration

IMAGES = 120
"""Parts of 16 and 8."""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_ended_is_followed_by_one_that_does_the_rest(
    package: str, tmp_path: Path, sent: signal.Signals
) -> None:
    write_pictures(tmp_path / "pictures", IMAGES)
    images, output = f"{tmp_path}/pictures", f"{tmp_path}/out"
    driver = begin(package, images, output)
    wait_for(lambda: len(parts(output)) >= 2, driver)
    # It gives out no more parts, whatever time the next command takes.
    driver.send_signal(signal.SIGSTOP)
    code, _, err = finish(begin(package, images, output))
    assert code == 2 and f"(pid {driver.pid}) has predicted into it since" in err
    driver.send_signal(sent)
    driver.send_signal(signal.SIGCONT)
    code, _, err = finish(driver)
    if sent == signal.SIGTERM:
        assert code == 5 and "the same command continues" in err
    # What workers had begun may still arrive: whole, or not at all.
    before = parts(output)
    assert not Path(output, "manifest.json").exists()
    code, out, err = finish(begin(package, images, output))
    assert (code, out) == (0, f"written {IMAGES}\n"), err
    after = parts(output)
    assert len(after) == 8 and before.items() <= after.items()
    rows = rows_of(output)
    assert [Path(row["uri"]).name for row in rows] == [f"{n:03d}.png" for n in range(IMAGES)]
    assert {row["status"] for row in rows} == {"ok"}
    assert finish(begin(package, images, output))[:2] == (0, f"reused {IMAGES}\n")


def test_a_worker_that_is_killed_costs_its_part_alone(package: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", IMAGES)
    images, output = f"{tmp_path}/pictures", f"{tmp_path}/out"
    driver = begin(package, images, output)
    wait_for(lambda: len(parts(output)) >= 1, driver)
    actors = [
        process
        for process in psutil.Process(driver.pid).children(recursive=True)
        if "ray::Worker" in " ".join(process.cmdline())
    ]
    assert 1 <= len(actors) <= 2
    actors[0].kill()
    code, out, err = finish(driver)
    assert (code, out) == (0, f"written {IMAGES}\n"), err
    assert len(rows_of(output)) == IMAGES


def test_a_node_that_leaves_costs_the_parts_in_work_and_another_goes_on(
    package: str, tmp_path: Path
) -> None:
    """Two nodes of one CPU; both leave, and the driver waits until another comes."""
    write_pictures(tmp_path / "pictures", 3 * IMAGES)
    images, output, whole = (f"{tmp_path}/{name}" for name in ("pictures", "out", "whole"))
    undisturbed = begin(package, images, whole)
    with Nodes(environment(RAY_AUTH_MODE="disabled")) as nodes:
        for name in ("first", "second"):
            nodes.add(name, cpus=1)
        driver = begin(package, images, output, nodes.address, RAY_AUTH_MODE="disabled")
        wait_for(lambda: len(parts(output)) >= 1, driver)
        for name in ("first", "second"):
            nodes.kill(name)
        before = parts(output)
        assert driver.stderr is not None
        said = next(line for line in driver.stderr if line.startswith("waiting"))
        assert said.endswith(": each needs 1 CPUs on one node\n")
        nodes.add("third", cpus=1)
        code, out, err = finish(driver)
    assert (code, out) == (0, f"written {3 * IMAGES}\n"), err
    assert finish(undisturbed)[0] == 0
    after = parts(output)
    assert len(before) < len(after) == len(parts(whole)) and before.items() <= after.items()
    assert rows_of(output) == rows_of(whole)


def test_an_outage_ends_with_exit_code_1_and_the_same_command_goes_on(
    package: str, bucket: str, tmp_path: Path
) -> None:
    write_pictures(f"{bucket}/pictures", IMAGES)
    output = f"{tmp_path}/out"
    # Not even the retries of a minute help: access is denied from the 60th picture on.
    rule = Rule(
        "answer", method="GET", path=r"/06\d\.png", times=1e9, status=403, code="AccessDenied"
    )
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        driver = begin(package, f"{bucket}/pictures", output, AWS_ENDPOINT_URL=proxy.url)
        code, out, err = finish(driver)
    assert code == 1 and out == "" and "cannot be read: " in err and "\nerror: " in f"\n{err}"
    assert "parts are done and stay: the same command goes on" in err
    done = parts(output)
    assert 0 < len(done) < 8
    code, out, err = finish(begin(package, f"{bucket}/pictures", output))
    assert (code, out) == (0, f"written {IMAGES}\n"), err
    assert done.items() <= parts(output).items()
    assert {row["status"] for row in rows_of(output)} == {"ok"}


def test_a_prediction_into_a_bucket(package: str, bucket: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 20)
    output = f"{bucket}/out"
    code, out, err = finish(begin(package, f"{tmp_path}/pictures", output))
    assert (code, out) == (0, "written 20\n"), err
    assert len(rows_of(output)) == 20
    assert set(files.list_names(output)) == {
        *("plan", "parts", "plan.json", "manifest.json", "summary.json"),
        *("predictions.parquet", "coco_results.json", "summary.html"),
    }
    assert finish(begin(package, f"{tmp_path}/pictures", output))[:2] == (0, "reused 20\n")
