"""A prediction in a process of its own, begun and watched by its parts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = """
import sys
from cluster.compute import session
from cluster.prediction import progress
from cluster.prediction.image_list import open_images
from cluster.prediction.predict import predict
from pipelines.command_line import run_verb
from pydantic import BaseModel

class Nothing(BaseModel):
    pass

def main(_):
    package, images, output, *address = sys.argv[1:]
    changes = {"workers": 2, "cpus_per_worker": 0.5}
    if address:
        changes = {"workers": 1, "most_workers": 2, "connect": lambda: session.connect(*address)}
    done = predict(package, open_images(images), output, **changes)
    print("reused" if done.reused else "written", done.summary.images)

progress.QUIET_S = 2.0
run_verb(Nothing, main, description="", argv=[])
"""


def begin(
    package: str, images: str, output: str, *address: str, **changes: str
) -> subprocess.Popen[str]:
    """Two workers on this machine, or one to two, of a CPU each, on the cluster at `address`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, package, images, output, *address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(driver: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = driver.communicate(timeout=300)
    return driver.returncode, out, err


def wait_for(event: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    while not event():
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)


def parts(output: str) -> dict[str, int]:
    """The parts that are there, and when each was written."""
    folder = Path(output, "parts")
    found = folder.glob("part-*.parquet") if folder.exists() else []
    return {path.name: path.stat().st_mtime_ns for path in found}
