from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.errors import DataError
from cluster.formats.annotation_files import list_annotations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.txt", "sub/B.TXT", "a.xml", "._a.txt", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_the_files_of_a_suffix_without_what_tools_left(folder: Path) -> None:
    (folder / "._b.txt").symlink_to("gone")
    (folder / "b.xml").symlink_to("gone")
    assert list_annotations(str(folder), ".txt") == [f"{folder}/a.txt", f"{folder}/sub/B.TXT"]
    assert list_annotations(str(folder), ".csv") == []


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_an_annotation_file_that_cannot_be_read_is_refused(folder: Path, kind: str) -> None:
    """Passed over, its picture would become one without objects."""
    if kind == "link":
        (folder / "sub/c.txt").symlink_to("gone")
    else:
        os.mkfifo(folder / "sub/c.txt")
    with pytest.raises(DataError, match=r"^.*/sub/c.txt: is .*; 1 of the 3 \.txt files in"):
        list_annotations(str(folder), ".txt")
