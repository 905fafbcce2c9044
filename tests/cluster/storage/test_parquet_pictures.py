from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import DataError
from cluster.formats.csv_boxes import read_csv
from cluster.storage import files, parquet_pictures

PICTURES = [bytes([number]) * (number + 1) for number in range(25)]


def write(path: Path, images: pa.Array, *, row_group_size: int = 10) -> str:
    table = pa.table({"objects": range(len(images)), "image": images})
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def structs(pictures: list[bytes | None]) -> pa.Array:
    return pa.array(
        [None if data is None else {"path": "a.jpg", "bytes": data} for data in pictures],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )


@pytest.mark.parametrize("row_group_size", [1, 10, 1000])
@pytest.mark.parametrize("binary", [False, True])
def test_every_row_is_read_by_its_number(tmp_path: Path, row_group_size: int, binary: bool) -> None:
    images = pa.array(PICTURES) if binary else structs([*PICTURES])
    uri = write(tmp_path / "a.parquet", images, row_group_size=row_group_size)
    uris = [f"{uri}#{row}" for row in (24, 0, 9, 10, 11)]
    assert parquet_pictures.read_pictures(uris) == {
        name: PICTURES[row] for name, row in zip(uris, (24, 0, 9, 10, 11), strict=True)
    }


def test_the_mean_size_is_that_of_the_pictures(tmp_path: Path) -> None:
    # (20000 + 40000) / 2, and what Parquet adds: a length for each, the header of a page.
    images = structs([bytes(20_000), bytes(40_000)])
    assert 30_000 <= parquet_pictures.mean_size(write(tmp_path / "a.parquet", images)) < 30_100


def test_each_row_group_is_streamed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write(tmp_path / "a.parquet", structs([*PICTURES]))
    streamed = []
    stream = parquet_pictures._stream
    monkeypatch.setattr(
        parquet_pictures,
        "_stream",
        lambda file, group, column: streamed.append(group) or stream(file, group, column),
    )
    parquet_pictures.read_pictures([f"{uri}#{row}" for row in (24, 1, 22, 3, 20, 5)])
    assert streamed == [0, 2]


def test_rows_without_a_picture(tmp_path: Path) -> None:
    # A row group without a null, one with nulls alone, one with both.
    pictures: list[bytes | None] = [b"a", b"b", None, None, None, b"c"]
    uri = write(tmp_path / "a.parquet", structs(pictures), row_group_size=2)
    with parquet_pictures.open_parquet(uri) as file:
        assert parquet_pictures.rows_with_picture(file).tolist() == [
            data is not None for data in pictures
        ]
    assert parquet_pictures.read_all([f"{uri}#2", f"{uri}#5", f"{uri}#99", "/nowhere.jpg"]) == [
        None,
        b"c",
        None,
        None,
    ]
    with pytest.raises(FileNotFoundError):
        parquet_pictures.read_picture(f"{uri}#2")


@pytest.mark.parametrize("name", ["a.jpg", "a#1.jpg", "a.parquet", "a.parquet#", "a.parquet#-1"])
def test_other_names_are_files(name: str) -> None:
    assert parquet_pictures.split(name) is None


def test_text_is_no_picture(tmp_path: Path) -> None:
    with parquet_pictures.open_parquet(write(tmp_path / "a.parquet", pa.array(["a.jpg"]))) as file:
        assert parquet_pictures.picture_column(file) is None
        assert parquet_pictures.rows_with_picture(file).tolist() == [False]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(DataError, match=r"a\.parquet: is damaged \(.*\); write or download it"):
        parquet_pictures.read_pictures([f"{tmp_path}/a.parquet#0"])


def test_pictures_and_tables_in_object_storage(bucket: str, tmp_path: Path) -> None:
    local = write(tmp_path / "a.parquet", structs([*PICTURES]))
    files.write_bytes(f"{bucket}/hub/a.parquet", Path(local).read_bytes())
    uri = f"{bucket}/hub/a.parquet"
    assert parquet_pictures.read_pictures([f"{uri}#24", f"{uri}#0"]) == {
        f"{uri}#24": PICTURES[24],
        f"{uri}#0": PICTURES[0],
    }
    files.write_bytes(f"{bucket}/a.csv", b"filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,4\n")
    (image,) = read_csv(f"{bucket}/a.csv", bucket).images
    assert image.annotations[0].box == (1, 2, 3, 4)
