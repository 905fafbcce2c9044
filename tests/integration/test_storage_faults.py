"""Full disks and unavailable storage during a training of real processes."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import DiskFull
from cluster.runs import run_folder
from cluster.runs.events import Resumed, Started
from cluster.training.checkpoint_download import download
from tests.support.faulty_s3 import FaultyS3, Rule
from tests.support.gates import Gate
from tests.support.trainings import (
    ALONE,
    ENDLESS,
    Typed,
    Watched,
    configured,
    last_weights,
    train_flags,
)

pytestmark = pytest.mark.integration


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for one checkpoint of this network (53 MB with its average and Adam's moments x 4), and
    not for two.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=250m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_training_in_one_line_and_the_last_checkpoint_is_whole(
    small_sets: dict[str, str],
    undisturbed_alone: dict[str, bytes],
    small_disk: Path,
    tmp_path: Path,
) -> None:
    """Resumed from that checkpoint, one worker ends with the same bits as in one go."""
    changes = {**ALONE, "checkpoint_folder": str(small_disk)}
    config = configured(small_sets, tmp_path, "full", **changes)

    def fill(_: dict[int, int]) -> None:
        with (
            contextlib.suppress(OSError),
            open(small_disk / "somebody's", "wb", buffering=0) as file,
        ):
            while True:
                file.write(bytes(1 << 20))

    run = Watched(config, fill, gate=Gate(tmp_path / "gate", steps=3))
    assert type(run.error) is DiskFull
    assert str(run.error).startswith(f"training full stopped: {small_disk}")
    assert "the disk is full" in str(run.error)
    assert "the checkpoints before it are whole" in str(run.error)
    # No restart: the disk would still be full.
    assert len(run.of(Started)) == 1
    os.unlink(small_disk / "somebody's")
    again = Watched(config)
    assert again.error is None and len(again.of(Resumed)) == 1
    assert run_folder.read_finished(config.run_uri) == run_folder.Finished(48, 2)
    assert last_weights(config) == undisturbed_alone


class Away(Rule):
    """Between `begin` and `end`, every request with `where` in its path meets the fault; `met`
    counts these requests.
    """

    where, met = None, 0

    def begin(self, fault: str, where: str) -> None:
        self.fault, self.where, self.met = fault, where, 0

    def end(self) -> None:
        self.where = None

    def applies(self, method: str, path: str) -> bool:
        meets = self.where is not None and self.where in path
        self.met += meets
        return meets


def test_training_continues_while_storage_is_unavailable(
    small_sets: dict[str, str], bucket: str, ray_cluster: str, tmp_path: Path
) -> None:
    """Storage refuses checkpoints for some steps, then does not answer for some steps, then resets
    every connection for a minute. The worker is not restarted, and after each fault the next
    checkpoint arrives. It gets the proxy's address from the driver. The driver's end frees the run.
    """
    rule = Away("answer", seconds=5)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        training = {**ALONE, **ENDLESS, "checkpoint_folder": f"{tmp_path}/waiting"}
        training |= {"keep_checkpoints": 2}
        flags = train_flags(small_sets, f"{bucket}/store", "away", tmp_path, **training)
        patch = "from tests.support import gates; gates.slow_launches(0.2)"
        changes = {"AWS_ENDPOINT_URL": proxy.url, "RAY_AUTH_MODE": "disabled"}
        with Typed([*flags, "--ray.address", ray_cluster], patch=patch, **changes) as driver:
            driver.until(" checkpoint s3://")
            for fault, where, seconds in (
                ("answer", "/checkpoints/", 0),
                ("stall", "/checkpoints/", 0),
                ("reset", "", 60),
            ):
                rule.begin(fault, where)
                over = time.monotonic() + seconds
                # The next lines may be of steps before the fault.
                while time.monotonic() < over or not rule.met:
                    driver.until("img/s")
                driver.until("img/s", times=10)
                rule.end()
                driver.until(" checkpoint s3://")
            driver.interrupt()
    assert driver.text.count("training on 1 workers") == 1, driver.text
    assert run_folder.read(f"{bucket}/store/runs/away", "driver.json") is None
    newest = run_folder.checkpoints(f"{bucket}/store/runs/away")[-1]
    assert newest >= re.findall(r" checkpoint (s3://\S+)", driver.text)[-1]
    download(newest, str(tmp_path / "fetched"))
