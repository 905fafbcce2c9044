from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import DataError, PlainError
from cluster.shards import quarantine, write
from cluster.shards.format import (
    SCHEMA,
    Federated,
)
from cluster.shards.index import (
    Counts,
    open_shard_set,
)
from cluster.shards.read import (
    read_annotations,
    read_columns,
    read_footer,
    read_row_group,
    read_rows,
)
from cluster.storage import files
from cluster.storage.uris import join
from tests.support.shard_sets import row, write_set


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_what_is_written_is_read(root: str) -> None:
    written = write_set(root, [[row(1, 2), row(2, 0), row(3, 1)], [row(4, 3)]])
    opened = open_shard_set(root)
    assert opened == written
    assert opened.num_rows == 4 and opened.rows_per_group == [2, 1, 1]
    assert opened.class_names == ["cat", "dog"] and opened.counts == Counts(images=4)
    table = read_row_group(opened.locate_group(0))
    assert table.schema == SCHEMA
    assert table.to_pylist() == [
        {
            "image_id": 1,
            "file_name": "1.jpg",
            "image": b"\x01" * 10,
            "height": 20,
            "width": 30,
            "boxes": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]],
            "labels": [0, 1],
            "crowd": [False, True],
            "area": [2.5, 2.5],
            "source": 1,
            "sha256": b"\x01" * 32,
        },
        {
            "image_id": 2,
            "file_name": "2.jpg",
            "image": b"\x02" * 10,
            "height": 20,
            "width": 30,
            "boxes": [],
            "labels": [],
            "crowd": [],
            "area": [],
        }
        | {"source": 0, "sha256": b"\x02" * 32},
    ]
    assert read_row_group(opened.locate_group(2))["image_id"].to_pylist() == [4]
    chosen = read_rows(
        [opened.locate_group(2), opened.locate_group(0)], [(1, 1), (0, 0), (1, 0), (0, 0)]
    )
    assert chosen["image_id"].to_pylist() == [2, 4, 1, 4]


def test_what_images_were_searched_for_is_null_where_it_is_everything(root: str) -> None:
    partly = replace(row(9, 1), federated=Federated((1,), ()))
    write_set(root, [[row(4, 1)], [partly, row(2, 0)]])
    opened = open_shard_set(root)
    table = read_annotations(opened)
    assert table["absent"].to_pylist() == [None, [1], None]
    assert table["incomplete"].to_pylist() == [None, [], None]
    # Rows of both kinds of shards are joined.
    rows = read_rows([opened.locate_group(0), opened.locate_group(1)], [(0, 0), (1, 0)])
    assert rows.schema.equals(SCHEMA) and rows["image_id"].to_pylist() == [4, 9]


def test_annotations_are_all_rows_in_order_without_pixels(root: str) -> None:
    write_set(root, [[row(4, 1), row(2, 0)], [row(9, 1)]])
    table = read_annotations(open_shard_set(root))
    assert table.column_names == [
        "image_id",
        "file_name",
        "height",
        "width",
        "boxes",
        "labels",
        "crowd",
        "area",
        "source",
        "sha256",
        "absent",
        "incomplete",
    ]
    assert table["image_id"].to_pylist() == [4, 2, 9]
    assert table["boxes"].to_pylist() == [[[4.0, 5.0, 6.0, 7.0]], [], [[9.0, 10.0, 11.0, 12.0]]]
    sizes = read_columns(open_shard_set(root), ["height", "image_id"])
    assert sizes.to_pydict() == {"height": table["height"].to_pylist(), "image_id": [4, 2, 9]}


@pytest.mark.parametrize("where", ["first group", "last group", "footer"])
def test_a_shard_that_is_not_the_one_of_the_index_is_refused_by_name(root: str, where: str) -> None:
    opened = write_set(root, [[row(1, 2), row(2, 1), row(3, 1)]])
    uri = join(root, opened.shards[0].name)
    data = bytearray(files.read_bytes(uri))
    locations = [opened.locate_group(group) for group in range(2)]
    data[
        {
            "first group": locations[0].start,
            "last group": locations[1].start + locations[1].bytes - 1,
            "footer": locations[1].footer_start,
        }[where]
    ] ^= 1
    files.write_bytes(uri, bytes(data))
    read_footer.cache_clear()
    refused = []
    for location in locations:
        try:
            read_row_group(location)
        except DataError as error:
            assert f"{uri}: is not the shard of the index" in str(
                error
            ) and "run prepare with --overwrite true" in str(error)
            refused.append(location.number)
    assert refused == {"first group": [0], "last group": [1], "footer": [0, 1]}[where]


def test_a_valid_shard_of_another_set_is_refused(root: str) -> None:
    opened = write_set(root, [[row(1, 2), row(2, 1)]])
    write.write_shard(root, opened.shards[0].name, [row(7, 2), row(8, 1)], row_group_rows=2)
    read_footer.cache_clear()
    with pytest.raises(DataError, match="is not the shard of the index"):
        read_row_group(opened.locate_group(0))


def test_a_damaged_page_of_annotations_is_noticed_without_reading_pixels(root: str) -> None:
    opened = write_set(root, [[row(1, 2), row(2, 1)]])
    uri = join(root, opened.shards[0].name)
    data = bytearray(files.read_bytes(uri))
    # The last byte of the last column, area, of the only row group.
    data[opened.locate_group(0).footer_start - 1] ^= 1
    files.write_bytes(uri, bytes(data))
    with pytest.raises(DataError, match="shard-00000-of-00001.parquet: is damaged"):
        read_annotations(opened)


def test_whatever_byte_is_damaged_annotations_are_right_or_refused(tmp_path: Path) -> None:
    opened = write_set(str(tmp_path), [[row(1, 2), row(2, 1), row(3, 0)]])
    file = tmp_path / opened.shards[0].name
    whole, expected = file.read_bytes(), read_annotations(opened)
    refused = 0
    for position in range(0, len(whole), 7):
        file.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]
        )
        read_footer.cache_clear()
        try:
            assert read_annotations(opened).equals(
                expected
            )  # what was hit is in the pixels or a checksum of theirs
        except DataError as error:
            assert file.name in str(error) and "run prepare with --overwrite true" in str(error)
            refused += 1
    assert refused > 0.9 * len(whole) / 7


def test_annotations_of_a_valid_shard_of_another_set_are_refused(root: str) -> None:
    opened = write_set(root, [[row(1, 2), row(2, 1)]])
    write.write_shard(root, opened.shards[0].name, [row(7, 2), row(8, 3)], row_group_rows=2)
    read_footer.cache_clear()
    with pytest.raises(DataError, match="is not the shard of the index"):
        read_annotations(opened)


def test_a_disk_that_fails_is_not_a_damaged_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = write_set(str(tmp_path), [[row(1, 2)]])

    def broken(uri: str, *span: int) -> bytes:
        raise OSError(5, "Input/output error")

    read_footer.cache_clear()
    for name in ("read_range", "read_bytes"):
        monkeypatch.setattr(files, name, broken)
    location = opened.locate_group(0)
    for reader, what in (
        (read_row_group, location),
        (read_annotations, opened),
        (quarantine.read_quarantine, str(tmp_path)),
    ):
        with pytest.raises(
            PlainError, match=r"cannot be read \(.*Input/output error\); check the storage"
        ) as caught:
            reader(what)
        assert not isinstance(caught.value, DataError)
