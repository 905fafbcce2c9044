from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from cluster.storage import files
from cluster.storage.local_tree import NO_FILE, NOWHERE
from cluster.storage.pictures import (
    DRAWN,
    HIDDEN,
    UNREADABLE_KEY,
    is_left_by_tools,
    list_pictures,
)
from detector.image import FORMATS, SUFFIXES


def encoded(format: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, format)
    return data.getvalue()


def test_suffixes_are_those_of_the_formats() -> None:
    Image.init()
    ours = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
    # MPO begins as a JPEG and is read as one.
    assert ours | {".mpo"} == SUFFIXES


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")


def fill(root: str, *names: str, content: bytes = b"") -> None:
    for name in names:
        files.write_bytes(f"{root}/{name}", content)


def test_pictures_are_known_by_suffix_or_without_one_by_content(root: str) -> None:
    fill(root, "a.JPG", "b/c.jp2", "b/d.jfif", "e.tar.png")
    fill(root, "README", "LICENSE", "b/empty")
    fill(root, "0001", content=encoded("PNG"))
    fill(root, "b/0002", content=encoded("JPEG"))
    fill(root, "icon", content=encoded("ICO"))
    found = list_pictures(root)
    assert found.uris == [
        f"{root}/{name}" for name in ("0001", "a.JPG", "b/0002", "b/c.jp2", "b/d.jfif", "e.tar.png")
    ]
    assert found.others == {"a file that is no picture": 4} and found.passed_over == {}


def test_an_object_that_the_client_cannot_read_is_passed_over_and_counted(bucket: str) -> None:
    import boto3

    fill(bucket, "a/x.jpg", "a/ v .jpg")
    for key in ("a//y.jpg", "/y.jpg", "a/./y.jpg", "a/../y.jpg", "a//y"):
        boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"x")
    found = list_pictures(f"{bucket}/a")
    assert found.uris == [f"{bucket}/a/ v .jpg", f"{bucket}/a/x.jpg"]
    assert found.passed_over == {UNREADABLE_KEY: 4}


def test_what_tools_leave_behind_is_passed_over_and_counted(root: str) -> None:
    left = (
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "b/._a.jpg",
        "@eaDir/a.jpg",
        "__MACOSX/._a.jpg",
        ".thumbnails/large/a.png",
        ".DS_Store",
        "b/Thumbs.db",
    )
    fill(root, "a.jpg", "b/a.b.jpg", *left)
    found = list_pictures(root)
    assert found.uris == [f"{root}/a.jpg", f"{root}/b/a.b.jpg"]
    assert found.passed_over == {HIDDEN: len(left)}


def test_the_results_of_a_prediction_are_passed_over(root: str) -> None:
    fill(root, "a.jpg", "out/predictions.parquet", "out/overlays/0000-a.jpg.png", "outer/b.jpg")
    found = list_pictures(root)
    assert found.uris == [f"{root}/a.jpg", f"{root}/outer/b.jpg"]
    assert found.passed_over == {DRAWN: 2}


def test_other_files_are_counted_by_suffix(root: str) -> None:
    fill(root, "a.heic", "b.HEIC", "c.txt", "y.a", *(f"x.{letter}" for letter in "abcdefg"))
    found = list_pictures(root)
    assert found.passed_over == {
        "a .heic picture, whose format is not read; convert it to JPEG": 2,
    }
    assert found.others == {
        "a .a file": 2,
        "a .txt file": 1,
        **{f"a .{letter} file": 1 for letter in "bcd"},
        "a file that is no picture": 3,
    }


def test_a_folder_above_may_be_hidden(tmp_path: Path) -> None:
    fill(f"{tmp_path}/.cache/data", "a.jpg")
    assert list_pictures(f"{tmp_path}/.cache/data/").uris == [f"{tmp_path}/.cache/data/a.jpg"]


@pytest.mark.parametrize("name", ["a.jpg", "b/c.jpg", "a..b/c", "deaDir/a", "~a.jpg"])
def test_files_that_no_tool_left(name: str) -> None:
    assert not is_left_by_tools(name)


def test_what_cannot_be_read_is_a_picture_by_its_suffix_alone(tmp_path: Path) -> None:
    fill(str(tmp_path), "a.jpg")
    for name in ("b.jpg", "c", "d.txt", ".e.jpg"):
        (tmp_path / name).symlink_to("gone")
    os.mkfifo(tmp_path / "f.png")
    os.mkfifo(tmp_path / "g")
    found = list_pictures(str(tmp_path))
    assert found.uris == [f"{tmp_path}/{name}" for name in ("a.jpg", "b.jpg", "f.png")]
    assert found.passed_over == {HIDDEN: 1, NOWHERE: 2, NO_FILE: 1} and found.others == {}
