from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.loading.datasets import file_rows, iterate
from cluster.storage.local_tree import NO_FILE
from cluster.storage.pictures import list_pictures
from tests.support.parquet_sets import row, write

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_pictures_inside_parquet_files_are_read_like_files(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.parquet", [row(number, data=b"%d" % number) for number in range(9)])
    (tmp_path / "a.jpg").write_bytes(b"file")
    uris = [f"{uri}#8", f"{tmp_path}/a.jpg", f"{uri}#0", f"{uri}#9", f"{tmp_path}/b.parquet#0"]
    rows = list(iterate(file_rows(uris)))
    assert [one["uri"] for one in rows] == uris
    assert [one["image"] for one in rows] == [b"8", b"file", b"0", b"", b""]
    assert [one["error"] is None for one in rows] == [True, True, True, False, False]


def test_what_is_no_file_costs_its_own_row_and_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"file")
    (tmp_path / "b.jpg").symlink_to("gone")
    os.mkfifo(tmp_path / "c.jpg")
    rows = list(iterate(file_rows(list_pictures(str(tmp_path)).uris)))
    assert [(Path(one["uri"]).name, one["error"]) for one in rows] == [
        ("a.jpg", None),
        ("b.jpg", "cannot be read: a link that leads nowhere"),
        ("c.jpg", f"cannot be read: {tmp_path}/c.jpg: is {NO_FILE}; put a file in its place"),
    ]
