from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cluster.errors import DataError, UsageError
from cluster.shards import write
from cluster.shards.format import (
    Category,
    GroupLocation,
    RowGroup,
    Shard,
    shard_name,
)
from cluster.shards.index import (
    Counts,
    Duplicates,
    Index,
    IndexedSource,
    NamedDuplicate,
    ShardSet,
    open_shard_set,
    set_digest,
    write_index,
)
from cluster.storage import files
from tests.support.shard_sets import CATEGORIES, row, write_set


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_groups_are_numbered_over_the_shards() -> None:
    def part(name: str, *rows: int) -> Shard:
        groups = tuple(
            RowGroup(count, 4 + 100 * number, 100, f"{name}{number}")
            for number, count in enumerate(rows)
        )
        return Shard(name, sum(rows), 4 + 100 * len(rows) + 9, "", groups, f"{name} footer")

    parts = (part("a", 2, 2, 1), part("b", 2), part("c", 2, 1))
    opened = ShardSet("s3://x/y", Index(CATEGORIES, parts))
    assert opened.rows_per_group == [2, 2, 1, 2, 2, 1]
    located = [opened.locate_group(group) for group in range(6)]
    assert located[2] == GroupLocation(
        "s3://x/y/a",
        2,
        start=204,
        bytes=100,
        sha256="a2",
        footer_start=304,
        footer_bytes=9,
        footer_sha256="a footer",
    )
    assert [(location.uri[-1], location.number) for location in located] == [
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


def test_the_digest_covers_version_categories_and_shards_in_order() -> None:
    a, b = Shard("a", 1, 1, "aa", (), ""), Shard("b", 1, 1, "bb", (), "")
    identity = json.dumps([2, [[0, 3, "cat"], [1, 18, "dog"]], ["aa", "bb"]])
    digest = set_digest(CATEGORIES, [a, b])
    assert digest == hashlib.sha256(identity.encode()).hexdigest()
    assert set_digest(CATEGORIES, [b, a]) != digest
    assert set_digest(CATEGORIES[:1], [a, b]) != digest


STORED = """\
{
 "schema_version": 2,
 "set_digest": "09ee15b9aaf28d833d707558435e5890379dd7210a7e1276b73f7052cff7fc0b",
 "source_digest": "aa",
 "counts": {
  "images": 2,
  "boxes": 3,
  "crowds": 1,
  "empty_images": 0,
  "quarantined": 1,
  "quarantined_images": 1,
  "quarantined_annotations": 0,
  "lost_annotations": 4,
  "dropped_images": 0,
  "listed_images": 3,
  "listed_annotations": 7
 },
 "categories": [
  {
   "label": 0,
   "id": 3,
   "name": "Kätzchen"
  }
 ],
 "sources": [
  {
   "name": "one",
   "format": "coco",
   "digest": "bb",
   "image_id_offset": 0,
   "category_ids": {
    "Kätzchen": 9
   },
   "images": 2
  }
 ],
 "fingerprint": "cc",
 "repairs": {
  "boxes clipped": 2
 },
 "duplicates": {
  "counts": {
   "": 1
  },
  "named": [
   {
    "file_name": "b.jpg",
    "same_as": "a.jpg",
    "set": ""
   }
  ]
 },
 "shards": [
  {
   "name": "shard-00000-of-00001.parquet",
   "rows": 2,
   "bytes": 130,
   "sha256": "dd",
   "row_groups": [
    [
     2,
     4,
     100,
     "ee"
    ]
   ],
   "footer_sha256": "ff"
  }
 ]
}
"""


def test_the_bytes_of_an_index_stay_the_same(tmp_path: Path) -> None:
    """This version reads an index of the version before and writes the same bytes."""
    (tmp_path / "index.json").write_text(STORED, encoding="utf-8")
    opened = open_shard_set(str(tmp_path))
    groups = (RowGroup(2, 4, 100, "ee"),)
    assert opened.index == Index(
        categories=(Category(0, 3, "Kätzchen"),),
        shards=(Shard("shard-00000-of-00001.parquet", 2, 130, "dd", groups, "ff"),),
        counts=Counts(
            images=2,
            boxes=3,
            crowds=1,
            quarantined=1,
            quarantined_images=1,
            lost_annotations=4,
            listed_images=3,
            listed_annotations=7,
        ),
        sources=(
            IndexedSource("one", "coco", digest="bb", category_ids={"Kätzchen": 9}, images=2),
        ),
        source_digest="aa",
        fingerprint="cc",
        repairs={"boxes clipped": 2},
        duplicates=Duplicates({"": 1}, (NamedDuplicate("b.jpg", "a.jpg", ""),)),
        set_digest=set_digest(opened.categories, opened.shards),
    )
    assert write_index(str(tmp_path), opened.index) == opened
    assert (tmp_path / "index.json").read_text(encoding="utf-8") == STORED


def test_a_frequency_is_stored_where_there_is_one(tmp_path: Path) -> None:
    plain, rare = Category(0, 3, "cat"), Category(1, 4, "owl", "r")
    for given in ([plain, rare], [plain, plain]):
        assert [Category.from_json(one.to_json()) for one in given] == given
    assert plain.to_json() == {"label": 0, "id": 3, "name": "cat"}
    write_index(str(tmp_path), Index((plain, rare)))
    assert open_shard_set(str(tmp_path)).categories == (plain, rare)
    # The digest of a plain set is that of the versions before: label, id, name.
    identity = json.dumps([2, [[0, 3, "cat"]], []]).encode()
    assert set_digest([plain], []) == hashlib.sha256(identity).hexdigest()
    assert set_digest([rare], []) != set_digest([rare._replace(frequency=None)], [])


def test_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    content = json.loads(STORED)
    content["later"] = content["counts"]["later"] = content["sources"][0]["later"] = 1
    files.write_json(str(tmp_path / "index.json"), content)
    assert open_shard_set(str(tmp_path)).index == Index.from_json(json.loads(STORED))


def test_shards_without_an_index_are_no_data_set(root: str) -> None:
    write.write_shard(root, shard_name(0, 1), [row(1, 1)], row_group_rows=2)
    with pytest.raises(
        UsageError, match=r"not a shard set, or its prepare did not finish \(no index.json\)"
    ):
        open_shard_set(root)


def test_an_index_of_another_version_or_kind_is_refused(tmp_path: Path) -> None:
    write_set(str(tmp_path), [[row(1, 1)]])
    written = json.loads((tmp_path / "index.json").read_text())
    for change, message in (
        ({"schema_version": 3}, "schema version 3 is newer than 2"),
        (
            {"schema_version": 1},
            "schema version 1 has no digests of the images; run prepare again",
        ),
        ({"schema_version": None}, "has no schema_version"),
        ({"shards": [{"name": "a"}]}, "is damaged"),
        (
            {"shards": [{**written["shards"][0], "name": "../a.parquet"}]},
            r"is damaged \(a shard has the name '\.\./a\.parquet'\)",
        ),
        ({"shards": [{**written["shards"][0], "rows": "1"}]}, r"is damaged \(shards.0.rows"),
    ):
        files.write_json(str(tmp_path / "index.json"), written | change)
        with pytest.raises(DataError, match=message):
            open_shard_set(str(tmp_path))
