from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import DataError, PlainError, UsageError
from cluster.shards import index, quarantine, write
from cluster.shards.format import SCHEMA, Category, Place, Row, RowGroup, Shard, shard_name
from cluster.shards.index import ShardSet
from cluster.shards.read import (
    read_annotations,
    read_columns,
    read_footer,
    read_row_group,
    read_rows,
)
from cluster.storage import files
from cluster.storage.uris import join

CATEGORIES = (Category(0, 3, "cat"), Category(1, 18, "dog"))


def row(image_id: int, boxes: int) -> Row:
    return Row(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        image=bytes([image_id]) * 10,
        height=20,
        width=30,
        boxes_N4=np.arange(4 * boxes, dtype=np.float32).reshape(boxes, 4) + image_id,
        labels_N=[number % 2 for number in range(boxes)],
        crowd_N=[number == 1 for number in range(boxes)],
        area_N=[2.5] * boxes,
        source=image_id % 2,
        sha256=bytes([image_id]) * 32,
    )


def write_set(uri: str, groups: list[list[Row]], *, row_group_rows: int = 2) -> ShardSet:
    written = [
        write.write_shard(uri, shard_name(n, len(groups)), rows, row_group_rows=row_group_rows)
        for n, rows in enumerate(groups)
    ]
    counts = {"images": sum(len(rows) for rows in groups)}
    return index.write_index(
        uri, categories=CATEGORIES, shards=written, counts=counts, source_digest="0" * 64
    )


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_what_is_written_is_read(root: str) -> None:
    written = write_set(root, [[row(1, 2), row(2, 0), row(3, 1)], [row(4, 3)]])
    opened = index.open_shard_set(root)
    assert opened == written
    assert opened.num_rows == 4 and opened.rows_per_group == [2, 1, 1]
    assert opened.class_names == ["cat", "dog"] and opened.counts == {"images": 4}
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


def test_annotations_are_all_rows_in_order_without_pixels(root: str) -> None:
    write_set(root, [[row(4, 1), row(2, 0)], [row(9, 1)]])
    table = read_annotations(index.open_shard_set(root))
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
    ]
    assert table["image_id"].to_pylist() == [4, 2, 9]
    assert table["boxes"].to_pylist() == [[[4.0, 5.0, 6.0, 7.0]], [], [[9.0, 10.0, 11.0, 12.0]]]
    sizes = read_columns(index.open_shard_set(root), ["height", "image_id"])
    assert sizes.to_pydict() == {"height": table["height"].to_pylist(), "image_id": [4, 2, 9]}


def test_groups_are_numbered_over_the_shards() -> None:
    def part(name: str, *rows: int) -> Shard:
        groups = tuple(
            RowGroup(count, 4 + 100 * number, 100, f"{name}{number}")
            for number, count in enumerate(rows)
        )
        return Shard(name, sum(rows), 4 + 100 * len(rows) + 9, "", groups, f"{name} footer")

    parts = (part("a", 2, 2, 1), part("b", 2), part("c", 2, 1))
    opened = ShardSet("s3://x/y", CATEGORIES, parts, "", {})
    assert opened.rows_per_group == [2, 2, 1, 2, 2, 1]
    located = [opened.locate_group(group) for group in range(6)]
    assert located[2] == Place(
        "s3://x/y/a",
        2,
        start=204,
        bytes=100,
        sha256="a2",
        footer_start=304,
        footer_bytes=9,
        footer_sha256="a footer",
    )
    assert [(place.uri[-1], place.number) for place in located] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("c", 0),
        ("c", 1),
    ]
    for outside in (-1, 6):
        with pytest.raises(IndexError):
            opened.locate_group(outside)


def test_the_same_rows_give_the_same_bytes_and_other_rows_others() -> None:
    rows = [row(1, 2), row(2, 0), row(3, 1)]
    first = write.encode_shard(rows, row_group_rows=2)
    assert write.encode_shard(list(rows), row_group_rows=2).to_pybytes() == first.to_pybytes()
    assert write.encode_shard(rows[::-1], row_group_rows=2).to_pybytes() != first.to_pybytes()


def test_a_row_group_is_cut_by_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten bytes an image and 25 bytes allowed: two and two and one.
    monkeypatch.setattr(write, "MAX_GROUP_BYTES", 25)
    assert [len(group) for group in write.cut_groups([row(n, 0) for n in range(5)], 100)] == [
        2,
        2,
        1,
    ]


def test_the_digest_covers_version_categories_and_shards_in_order() -> None:
    a, b = Shard("a", 1, 1, "aa", (), ""), Shard("b", 1, 1, "bb", (), "")
    identity = json.dumps([2, [[0, 3, "cat"], [1, 18, "dog"]], ["aa", "bb"]])
    digest = index.set_digest(CATEGORIES, [a, b])
    assert digest == hashlib.sha256(identity.encode()).hexdigest()
    assert index.set_digest(CATEGORIES, [b, a]) != digest
    assert index.set_digest(CATEGORIES[:1], [a, b]) != digest


def test_no_index_no_data_set(root: str) -> None:
    write.write_shard(root, shard_name(0, 1), [row(1, 1)], row_group_rows=2)
    with pytest.raises(
        UsageError, match=r"not a shard set, or its prepare was not finished \(no index.json\)"
    ):
        index.open_shard_set(root)


def test_an_index_of_another_kind(tmp_path: Path) -> None:
    write_set(str(tmp_path), [[row(1, 1)]])
    written = json.loads((tmp_path / "index.json").read_text())
    for change, message in (
        ({"schema_version": 3}, "schema version 3 is newer than 2"),
        (
            {"schema_version": 1},
            "schema version 1 lacks the digests of the images; run prepare again",
        ),
        ({"schema_version": None}, "holds no schema_version"),
        ({"shards": [{"name": "a"}]}, "is damaged"),
    ):
        files.write_json(str(tmp_path / "index.json"), written | change)
        with pytest.raises(DataError, match=message):
            index.open_shard_set(str(tmp_path))


@pytest.mark.parametrize("where", ["first group", "last group", "footer"])
def test_a_shard_that_is_not_the_one_of_the_index_is_refused_by_name(root: str, where: str) -> None:
    opened = write_set(root, [[row(1, 2), row(2, 1), row(3, 1)]])
    uri = join(root, opened.shards[0].name)
    data = bytearray(files.read_bytes(uri))
    places = [opened.locate_group(group) for group in range(2)]
    data[
        {
            "first group": places[0].start,
            "last group": places[1].start + places[1].bytes - 1,
            "footer": places[1].footer_start,
        }[where]
    ] ^= 1
    files.write_bytes(uri, bytes(data))
    read_footer.cache_clear()
    refused = []
    for place in places:
        try:
            read_row_group(place)
        except DataError as error:
            assert f"{uri}: is not the shard of the index" in str(
                error
            ) and "run prepare with --overwrite true" in str(error)
            refused.append(place.number)
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
    for place in range(0, len(whole), 7):
        file.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
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

    def broken(uri: str, *place: int) -> bytes:
        raise OSError(5, "Input/output error")

    read_footer.cache_clear()
    for name in ("read_range", "read_bytes"):
        monkeypatch.setattr(files, name, broken)
    place = opened.locate_group(0)
    for reader, what in (
        (read_row_group, place),
        (read_annotations, opened),
        (quarantine.read_quarantine, str(tmp_path)),
    ):
        with pytest.raises(
            PlainError, match=r"cannot be read \(.*Input/output error\); check the storage"
        ) as caught:
            reader(what)
        assert not isinstance(caught.value, DataError)


def test_a_missing_or_damaged_quarantine_is_told_plainly(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"quarantine.parquet: is not in the folder of its set; run prepare"
    ):
        quarantine.read_quarantine(str(tmp_path))
    quarantine.write_quarantine(
        str(tmp_path), [{"what": "image", "where": "ä.jpg", "why": "it is empty", "raw": "{}"}]
    )
    whole = (tmp_path / "quarantine.parquet").read_bytes()
    for place in range(0, len(whole), 7):
        (tmp_path / "quarantine.parquet").write_bytes(
            whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        )
        with contextlib.suppress(DataError):
            quarantine.read_quarantine(str(tmp_path))
    (tmp_path / "quarantine.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"quarantine.parquet: is damaged \(.*\); run prepare"):
        quarantine.read_quarantine(str(tmp_path))


def test_quarantine_round_trip(root: str) -> None:
    records = [{"what": "image", "where": "ä.jpg", "why": "it is empty", "raw": '{"id": 1}'}]
    quarantine.write_quarantine(root, records)
    assert quarantine.read_quarantine(root) == records
    quarantine.write_quarantine(root, [])
    assert quarantine.read_quarantine(root) == []


def test_stored_columns_are_the_published_ones() -> None:
    boxes = pa.list_(pa.list_(pa.float32(), 4))
    assert SCHEMA.names == [
        "image_id",
        "file_name",
        "image",
        "height",
        "width",
        "boxes",
        "labels",
        "crowd",
        "area",
        "source",
        "sha256",
    ]
    assert SCHEMA.field("boxes").type == boxes and SCHEMA.field("image_id").type == pa.int64()
