"""Temporary folders are removed with their process, or by the next one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.storage import scratch
from cluster.storage.scratch import make_scratch_folder, scratch_folder

CHILD = """
import sys
from cluster.storage.scratch import make_scratch_folder
print(make_scratch_folder("weights"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, which no process has swept yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch._sweep.cache_clear()
    return tmp_path


def test_a_folder_is_private_and_removed_at_the_end(parent: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder("weights") as folder:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700 and Path(folder).parent == parent
        raise RuntimeError
    assert os.listdir(parent) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next(parent: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "TMPDIR": str(parent)}
    with subprocess.Popen([sys.executable, "-c", CHILD], env=environment, **pipes) as child:
        assert child.stdout is not None
        left = child.stdout.readline().strip()
        # While it lives its folder stays.
        own = make_scratch_folder("weights")
        assert {left, own} == {str(path) for path in parent.iterdir()}
        child.send_signal(signal.SIGKILL)
        child.wait()
    # What looks like such a folder and is another's stays too: of a container, of nobody we know.
    others = [f"retinaray-weights-1-{child.pid}-7-abc", "retinaray-mine", "retinaray-a-b-c-d-e"]
    for name in others:
        (parent / name).mkdir()
    table = scratch._table()
    (parent / f"retinaray-weights-{table}-{child.pid}-8-abc").symlink_to(parent / others[0])
    scratch._sweep.cache_clear()
    with scratch_folder("weights"):
        pass
    assert not os.path.exists(left) and os.path.isdir(own)
    assert all((parent / name).is_dir() for name in others)
