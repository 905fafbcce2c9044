"""Every kind of source becomes the same list each time; what is no image is counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import DataError, UsageError
from cluster.prediction import image_list
from cluster.prediction.image_list import ImageList, given_images, numbered, open_images
from cluster.storage import files
from tests.support.listed_bucket import ListedBucket
from tests.support.parquet_sets import row as parquet_row
from tests.support.parquet_sets import write as write_parquet
from tests.support.predicting import write_pictures
from tests.support.shard_sets import row, write_set


def uris(images: str) -> list[str]:
    return list(open_images(images).uris())


def table_of(images: ImageList) -> pa.Table:
    return pa.concat_tables(images.rows())


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")


def fill(root: str, *names: str) -> None:
    for name in names:
        files.write_bytes(f"{root}/{name}", b"x")


def test_a_folder_without_a_picture_is_refused_with_what_is_there(tmp_path: Path) -> None:
    images = open_images(str(tmp_path))
    with pytest.raises(DataError, match=r"no picture below it .it is empty.; check the folder"):
        images.rows()
    for name in ("notes.txt", "a.heic", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r".1 x a hidden file .*; 1 x a .heic picture.* .txt file"):
        images.rows()
    (tmp_path / "a.PNG").write_bytes(b"")
    assert uris(str(tmp_path)) == [f"{tmp_path}/a.PNG"]


def test_a_loop_of_links_repeats_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert uris(str(tmp_path)) == [f"{tmp_path}/a.png"]


def test_links_that_lead_nowhere_and_pipes_are_listed(tmp_path: Path) -> None:
    """Each is a row with an error then, like other pictures that cannot be read."""
    (tmp_path / "a.jpg").symlink_to("gone")
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "notes")
    images = open_images(str(tmp_path))
    assert list(images.uris()) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.png"]
    assert images.passed_over() == {"neither a file nor a folder: a pipe, a socket or a device": 1}


def test_a_single_picture_is_a_list_of_one(tmp_path: Path) -> None:
    picture, other = tmp_path / "a", tmp_path / "b.jpg"
    Image.new("RGB", (60, 40)).save(picture, "PNG")
    assert uris(str(picture)) == [str(picture)] and open_images(str(picture)).folder == str(
        tmp_path
    )
    other.write_text("no picture")
    with pytest.raises(DataError, match=r"b.jpg: is a file and no picture that can be read"):
        open_images(str(other))


def test_a_list_of_any_length_comes_in_tables_in_the_order_of_the_names(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, "a/2.jpg", "a.jpg", "a/b/1.jpg", "b.jpg", "a-b.jpg", "a/1.jpg", "z.txt")
    monkeypatch.setattr(image_list, "ROWS", 4)
    images = open_images(root)
    assert [table.num_rows for table in images.rows()] == [4, 2]
    names = [uri.removeprefix(f"{root}/") for uri in images.uris()]
    assert names == sorted(names) and len(names) == 6
    assert table_of(images)["size"].to_pylist() == [1] * 6
    assert None not in table_of(images)["changed"].to_pylist()
    assert images.passed_over() == {"a .txt file": 1}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "c/d.jpg", "c/e/f.jpg"]),
        ("c/**", ["c/d.jpg", "c/e/f.jpg", "c/g.png"]),
        ("?.jp[fg]", ["a.jpg", "b.jpg"]),
        ("[!a].jpg", ["b.jpg"]),
        ("c/*", ["c/d.jpg", "c/g.png"]),
    ],
)
def test_a_pattern_selects_by_name(root: str, pattern: str, found: list[str]) -> None:
    fill(root, "a.jpg", "b.jpg", "c/d.jpg", "c/e/f.jpg", "c/g.png", "c/h.txt")
    if root.startswith("s3://"):
        fill(root, "x/a.jpg")
        root = f"{root}/x"
        fill(root, "a.jpg", "b.jpg", "c/d.jpg", "c/e/f.jpg", "c/g.png", "c/h.txt")
    assert uris(f"{root}/{pattern}") == [f"{root}/{name}" for name in found]


def test_a_name_with_brackets_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos [2024]", 1)
    assert uris(f"{tmp_path}/photos [2024]") == [f"{tmp_path}/photos [2024]/000.png"]


def test_a_pattern_without_a_match_and_one_without_a_folder(tmp_path: Path, s3: str) -> None:
    fill(str(tmp_path), "a.jpg")
    with pytest.raises(DataError, match=r"\*.png: no picture below it .*check the pattern"):
        open_images(f"{tmp_path}/*.png").rows()
    with pytest.raises(UsageError, match="wildcard in the name of the bucket"):
        open_images("s3://cells-*/a.jpg")


def test_a_text_has_a_uri_in_each_line(root: str) -> None:
    text = f"a.jpg\n\n  sub/b.jpg  \r\n/data/c.jpg\ns3://other/d e.jpg\n{root}/e.jpg"
    files.write_bytes(f"{root}/lists/some.txt", text.encode())
    assert uris(f"{root}/lists/some.txt") == [
        f"{root}/lists/a.jpg",
        f"{root}/lists/sub/b.jpg",
        "/data/c.jpg",
        "s3://other/d e.jpg",
        f"{root}/e.jpg",
    ]


def test_columns_of_a_csv_are_carried_as_text_and_ids_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('place,image,image_id\n"x, y",1.jpg,7\n,2.jpg,\n')
    images = open_images(f"{tmp_path}/a.csv", column="image")
    assert images.has_ids and table_of(images).to_pylist() == [
        {"uri": f"{tmp_path}/1.jpg", "image_id": 7, "place": "x, y", "size": None, "changed": None},
        {"uri": f"{tmp_path}/2.jpg", "image_id": None, "place": "", "size": None, "changed": None},
    ]


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"uri": "1.jpg", "n": 3, "tags": ["a"]}, {"uri": "2.jpg", "tags": "b"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    images = open_images(f"{tmp_path}/a.jsonl")
    rows = table_of(images).to_pylist()
    assert [(row["n"], row["tags"]) for row in rows] == [("3", '["a"]'), (None, "b")]
    assert not images.has_ids


def test_columns_of_parquet_keep_their_types(root: str) -> None:
    columns = {"uri": ["a.jpg", "b.jpg"], "when": pa.array([1, 2], pa.timestamp("s"))}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    files.write_bytes(f"{root}/list.parquet", sink.getvalue())
    images = open_images(f"{root}/list.parquet")
    assert images.carried.field("when").type == table_of(images).schema.field("when").type
    assert list(images.uris()) == [f"{root}/a.jpg", f"{root}/b.jpg"]


def test_pictures_inside_a_parquet_file(tmp_path: Path) -> None:
    uri = write_parquet(tmp_path / "a.parquet", [parquet_row(number) for number in range(3)])
    assert uris(uri) == [f"{uri}#0", f"{uri}#1", f"{uri}#2"]


def test_a_shard_set_has_its_ids_and_names(tmp_path: Path) -> None:
    write_set(str(tmp_path / "set"), [[row(4, 1), row(2, 0)], [row(9, 2)]])
    images = open_images(str(tmp_path / "set"))
    table = table_of(images)
    assert images.has_ids and table["image_id"].to_pylist() == [4, 2, 9]
    assert table["file_name"].to_pylist() == ["4.jpg", "2.jpg", "9.jpg"]
    assert table["uri"].to_pylist() == [
        f"{tmp_path}/set/shard-00000-of-00002.parquet#0",
        f"{tmp_path}/set/shard-00000-of-00002.parquet#1",
        f"{tmp_path}/set/shard-00001-of-00002.parquet#0",
    ]


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("a.csv", "image\n1.jpg\n", UsageError, "no column 'uri', it has 'image'; --column NAME"),
        ("a.csv", "", UsageError, "has no column 'uri', it has no column"),
        ("a.csv", "uri,scores\n1.jpg,2\n", UsageError, "'scores' has the name of a column of the"),
        ("a.csv", "uri,a\n1.jpg\n", DataError, "line 2 has 1 fields, the first line 2"),
        ("a.csv", "uri,image_id\n1.jpg,x\n", DataError, "line 2: image_id 'x' is no whole number"),
        ("a.csv", "uri,a\n,2\n", DataError, "line 2 names no image"),
        ("a.csv", "uri,a,a\n1.jpg,2,2\n", UsageError, "has two columns of one name"),
        ("a.csv", "uri\n", DataError, "no picture in it .it is empty.; check the list"),
        ("a.jsonl", '{"uri": "1.jpg"}\n{"uri"', DataError, "line 2 is not JSON"),
        ("a.jsonl", '{"uri": "a"}\n{"uri": "b", "c": 1}', DataError, "line 2 has 'c', which the"),
        ("a.jsonl", "[1]", DataError, "line 1 is no JSON object"),
        ("a.txt", "a.jpg\nhttp://host/b.jpg", DataError, "line 2: the scheme http:// is not"),
        ("a.txt", b"a.jpg\n\xff\xfe", DataError, "is not UTF-8"),
        ("a.parquet", "PAR1", DataError, "a.parquet: is damaged"),
    ],
)
def test_a_list_with_a_fault_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, error: type[Exception], said: str
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=said):
        table_of(open_images(f"{tmp_path}/{name}"))


def test_given_images_and_positions() -> None:
    given = given_images("/set", {"/a.jpg": 4, "/b.jpg": None})
    assert table_of(given)["image_id"].to_pylist() == [4, None] and given.has_ids
    tables = numbered([table_of(given), table_of(given)])
    assert [table["image_id"].to_pylist() for table in tables] == [[1, 2], [3, 4]]


def test_of_a_bucket_of_any_size_the_first_images_come_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """10^9 keys: whoever listed them all would not end today."""
    credentials = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    with ListedBucket(10**9) as endpoint:
        for name, value in {"AWS_ENDPOINT_URL": endpoint, **credentials}.items():
            monkeypatch.setenv(name, value)
        first = next(open_images("s3://bucket/pictures").rows())
    assert first["uri"][0].as_py() == "s3://bucket/pictures/000000000.jpg"
