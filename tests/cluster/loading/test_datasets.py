from __future__ import annotations

from pathlib import Path

import pytest

from cluster.loading.datasets import file_rows, iterate
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
