"""Local disks that are full, fill up, or cannot be written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DiskFull, UsageError
from cluster.storage import files
from cluster.training import checkpoint_writer
from cluster.training.checkpoint_writer import LocalCheckpoints, local_folder
from tests.support.checkpoint_runs import CheckpointRun


def test_a_disk_without_room_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CheckpointRun(str(tmp_path), tmp_path / "disk")
    run.save(100)
    run.settle()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        DiskFull,
        match=(
            r"disk is full \(a checkpoint takes 41\d{5} bytes, 1000 are"
            r" free\).*--training.checkpoint_folder"
        ),
    ):
        run.save(200)
    assert CheckpointRun(str(tmp_path), tmp_path / "disk").newest(tmp_path) == 100


def test_a_disk_with_room_for_one_waits_until_the_one_before_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, looked = CheckpointRun(str(tmp_path), tmp_path / "disk"), threading.Event()
    usage, upload = shutil.disk_usage(tmp_path), files.upload_folder

    def disk_usage(path: str) -> Any:
        free = 1000 if run.waiting else usage.free
        if free == 1000:
            looked.set()
        return usage._replace(free=free)

    def upload_folder(*given: Any, **settings: Any) -> None:
        assert looked.wait(10)
        upload(*given, **settings)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
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


def test_a_disk_that_fills_during_a_write_leaves_the_last_checkpoint_whole(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "SMALL_FILES", 0)
    run = CheckpointRun(str(tmp_path), small_disk)
    run.save(100)
    run.settle()
    # 76,000 x 4 bytes and their names are more than 300 KiB, less the folders, leave.
    run.save(200, values=76_000)
    with pytest.raises(
        DiskFull, match=f"{small_disk}.*the disk is full.*the checkpoints before it are whole"
    ):
        run.checkpoints.close()
    with pytest.raises(DiskFull):
        run.checkpoints.is_due(200, 204)
    assert os.listdir(run.store.local.folder) == []
    assert CheckpointRun(str(tmp_path), small_disk).newest(tmp_path) == 100


def test_a_local_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=r"file/cells-\w+: cannot be written \(Not a directory\); name another"
    ):
        CheckpointRun(str(tmp_path), tmp_path / "file")


def test_the_folder_in_tmp_is_for_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = Path(local_folder("/runs/a", "1", None))
    assert folder.parent == tmp_path / f"retinaray-{os.getuid()}"
    LocalCheckpoints(str(folder))
    for each in (folder, folder.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
        each.chmod(0o777)
        with pytest.raises(UsageError, match=f"{each}: can be written by other users; remove it"):
            LocalCheckpoints(str(folder))
        each.chmod(0o700)
    LocalCheckpoints(str(folder))


@pytest.mark.parametrize("level", ["run", "parent"])
def test_what_another_user_has_put_in_the_place_of_the_folder_is_refused(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    folder = Path(local_folder("/runs/a", "1", None))
    planted = folder if level == "run" else folder.parent
    planted.parent.mkdir(mode=0o700, parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    planted.symlink_to(elsewhere)
    with pytest.raises(UsageError, match=f"{planted}: is a link or no folder"):
        LocalCheckpoints(str(folder))
    assert os.listdir(elsewhere) == []
    planted.unlink()
    planted.mkdir(mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    monkeypatch.setattr(checkpoint_writer, "_own_folder", lambda: str(folder.parent))
    refused = folder.parent if level == "run" else planted
    with pytest.raises(UsageError, match=f"{refused}: belongs to the user {owner}, not to"):
        LocalCheckpoints(str(folder))


def test_a_folder_that_the_user_named_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    LocalCheckpoints(local_folder("/runs/a", "1", str(tmp_path / "link")))
    assert len(os.listdir(tmp_path / "disk")) == 1
