"""A folder in /tmp is for this user alone, or it is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.compute.private_folder import make_private
from cluster.errors import UsageError


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


def test_a_folder_is_made_closed_and_one_that_others_could_read_is_closed(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    old.chmod(0o755)
    for folder in (new, old):
        make_private(str(folder), remedy="name another")
        assert mode(folder) == 0o700


def test_what_others_could_have_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, link, file = tmp_path / "shared", tmp_path / "link", tmp_path / "file"
    shared.mkdir()
    shared.chmod(0o777)
    link.symlink_to(tmp_path)
    file.touch()
    for path, fault in ((shared, "written by other"), (link, "a link or"), (file, "no folder")):
        with pytest.raises(UsageError, match=f"{fault}.*; remove it, or name another"):
            make_private(str(path), remedy="name another")
    assert mode(shared) == 0o777
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UsageError, match="belongs to the user .*, not to 12345"):
        make_private(str(own), remedy="name another")
