from __future__ import annotations

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
