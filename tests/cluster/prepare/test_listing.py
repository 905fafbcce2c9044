from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.formats.annotations import ImageRecord, Source, images_of_records
from cluster.formats.read import in_val
from cluster.prepare.listing import match_files
from cluster.shards.format import Category
from cluster.shards.quarantine import Quarantined


def source(*names: str, left_out: tuple[str, ...] = ()) -> Source:
    return Source(
        categories=(Category(0, 1, "cat"),),
        images=images_of_records(
            [ImageRecord(number, name, None, None, ()) for number, name in enumerate(names)]
        ),
        quarantined=tuple(Quarantined("image", name, "it is bad", "{}") for name in left_out),
        repairs={},
        listed=len(names) + len(left_out),
        annotated=0,
        lost=0,
        largest_id=len(names),
        digest="",
    )


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for name in ("a.jpg", "b/c.png", "b/d.JP2", "notes.txt", ".hidden/a.jpg", "._a.jpg", "e.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return str(tmp_path)


def test_pictures_in_no_record_are_counted(folder: str) -> None:
    assert match_files(source("a.jpg"), [folder]).passed_over == {
        "a picture in the folder that no record lists (such as b/c.png)": 2
    }
    everything = source("a.jpg", "b/c.png", "b/d.JP2")
    assert match_files(everything, [folder]).passed_over == {}


def test_a_record_that_was_left_out_lists_its_picture(folder: str) -> None:
    found = match_files(source("a.jpg", "b/c.png", left_out=("b/d.JP2",)), [folder])
    assert found.passed_over == {}


def test_pictures_of_another_split_are_not_counted(folder: str) -> None:
    names = ("a.jpg", "b/c.png", "b/d.JP2")
    for split in ("train", "val"):
        of_split = [name for name in names if in_val(name, 0.5) == (split == "val")]
        found = match_files(source(), [folder], split=split, val_share=0.5)
        assert sum(found.passed_over.values()) == len(of_split)


def test_a_folder_of_two_sources_is_counted_once(folder: str) -> None:
    found = match_files(source("a.jpg"), [folder, folder])
    assert list(found.passed_over.values()) == [2]


@pytest.mark.parametrize(
    ("given", "files", "said"),
    [
        (("a.jpg\n", " b.jpg"), ("a.jpg", "b.jpg"), "file names with blanks around them"),
        (("my%20a.jpg", "b.jpg"), ("my a.jpg", "b.jpg"), "file names with % codes"),
        (
            ("images/train/a.jpg", "images/train/b.jpg"),
            ("a.jpg", "train/b.jpg"),
            "file names with folders that are not below the images folder",
        ),
        (
            ("a.jpg", "b/c.jpg"),
            ("Train/Data/a.jpg", "Train/b/c.jpg"),
            "files found in a folder below, by their name alone",
        ),
        (
            ("images/v1/patch8/1.jpg", "images/v2/patch16/1.jpg", "images/v1/patch8/2.jpg"),
            ("patch8/1.jpg", "patch16/1.jpg", "patch8/2.jpg"),
            "file names with folders that are not below the images folder",
        ),
        (
            ("images/v1/patch8/1.jpg", "images/v2/patch16/1.jpg", "images/v1/patch8/2.jpg"),
            ("train/patch8/1.jpg", "train/patch16/1.jpg", "train/patch8/2.jpg"),
            "file names that begin with other folders than the files",
        ),
        (
            ("a.png", "b.jpg", "c"),
            ("a.jpg", "b.jpg", "c.webp"),
            "files with another suffix than the annotations give",
        ),
    ],
)
def test_a_rule_that_finds_a_file_for_every_name_is_believed_and_said(
    tmp_path: Path, given: tuple[str, ...], files: tuple[str, ...], said: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = match_files(source(*given), [str(tmp_path)])
    assert tuple(found.images.names) == files and found.quarantined == []
    assert found.repairs == {said: len(set(given) - set(files))} and found.passed_over == {}


@pytest.mark.parametrize(
    ("given", "files"),
    [
        # One of two only; the same name in two folders; a file that another record has; another
        # folder of the same numbers.
        (("a.jpg", "b.jpg"), ("Train/a.jpg",)),
        (("a.jpg", "b.jpg"), ("x/a.jpg", "y/a.jpg", "x/b.jpg")),
        (("a.jpg", "old/a.jpg"), ("a.jpg",)),
        (("val/1.jpg", "val/2.jpg"), ("train/1.jpg", "train/2.jpg")),
        (("v1/p8/1.jpg", "v1/p8/2.jpg"), ("a/p8/1.jpg", "b/p8/1.jpg", "a/p8/2.jpg")),
    ],
)
def test_a_rule_that_leaves_a_name_open_is_a_hint_and_no_more(
    tmp_path: Path, given: tuple[str, ...], files: tuple[str, ...]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = match_files(source(*given), [str(tmp_path)])
    assert found.repairs == {} and found.quarantined
    hints = {entry.where: entry.detail for entry in found.quarantined}
    assert {entry.why for entry in found.quarantined} == {"the file is not in the images folder"}
    if files == ("Train/a.jpg",):
        assert hints["a.jpg"] == "there is Train/a.jpg"


def test_a_name_with_other_capitals_is_left_out_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_bytes(b"x")
    found = match_files(source("A.PNG", "Sub/b.png", "c/B.png"), [str(tmp_path)])
    assert {entry.where: entry.detail for entry in found.quarantined} == {
        "A.PNG": "there is a.png, which differs in capitals alone",
        "Sub/b.png": "there is sub/b.png, which differs in capitals alone",
        "c/B.png": "there is sub/b.png",
    }


def test_pictures_that_cannot_be_read_are_left_out_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").symlink_to("gone")
    (tmp_path / "c.jpg").symlink_to("gone")
    os.mkfifo(tmp_path / "d.jpg")
    found = match_files(source("a.jpg", "b.jpg", "d.jpg"), [str(tmp_path)])
    assert found.usable.tolist() == [0]
    assert {entry.where: entry.why for entry in found.quarantined} == {
        "b.jpg": "it is a link that leads nowhere",
        "d.jpg": "it is neither a file nor a folder: a pipe, a socket or a device",
    }
    assert found.passed_over == {"a picture in the folder that no record lists (such as c.jpg)": 1}
