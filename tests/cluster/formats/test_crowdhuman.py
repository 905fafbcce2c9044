from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, UsageError
from cluster.formats import crowdhuman
from cluster.formats.annotations import Annotation, ImageRecord, Source
from cluster.shards.format import Category
from cluster.storage import files

PERSON = {
    "tag": "person",
    "fbox": [-5, 10, 40, 90],
    "vbox": [0, 10, 30, 40],
    "hbox": [5, 10, 9, 9],
    "head_attr": {"ignore": 1, "occ": 0, "unsure": 0},
    "extra": {"box_id": 0, "occ": 1},
}


def line(id_: Any, *boxes: Any) -> str:
    return json.dumps({"ID": id_, "gtboxes": list(boxes)})


def read(folder: Path, *lines: str) -> Source:
    (folder / "a.odgt").write_text("\n".join(lines))
    return crowdhuman.read_crowdhuman(str(folder / "a.odgt"), "images")


def reasons(source: Source) -> list[tuple[str, str, str]]:
    return [(entry.what, entry.where, entry.why) for entry in source.quarantined]


def test_a_file_as_it_is_downloaded(tmp_path: Path) -> None:
    mask = {"tag": "mask", "fbox": [1, 2, 3, 4], "extra": {"ignore": 1}}
    far = {**PERSON, "extra": {"ignore": 1}}
    source = read(tmp_path, line("27,c9", PERSON, mask, far), "", line("28,d0"))
    assert source.categories == (Category(0, 1, "person"),)
    # The box may leave the picture; -5 + 40 = 35, 10 + 90 = 100. An ignored head is no matter.
    full = (-5.0, 10.0, 35.0, 100.0)
    assert tuple(source.images) == (
        ImageRecord(
            1,
            "27,c9.jpg",
            None,
            None,
            (
                Annotation(1, 0, full, False, None),
                Annotation(2, 0, (1.0, 2.0, 4.0, 6.0), True, None),
                Annotation(3, 0, full, True, None),
            ),
        ),
        ImageRecord(3, "28,d0.jpg", None, None, ()),
    )
    assert source.repairs == {"areas to ignore (tag mask, or ignore in extra), stored as crowds": 2}
    assert (source.listed, source.annotated, source.quarantined) == (2, 3, ())
    assert source.digest == hashlib.sha256((tmp_path / "a.odgt").read_bytes()).hexdigest()


def test_a_bad_line_costs_itself_and_is_named_by_its_number(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        line("good", PERSON),
        '{"ID": "cut", "gtboxes": [',
        "[1]",
        line(7, PERSON),
        line("\0", PERSON, PERSON),
        json.dumps({"ID": "none"}),
        line("good", PERSON),
        "9" * 5000,
        "[" * 100_000,
        line("last"),
    )
    assert [image.file_name for image in source.images] == ["good.jpg", "last.jpg"]
    found = {int(where.removeprefix("line ")): why for _, where, why in reasons(source)}
    # `{"ID": "cut", "gtboxes": [` has 26 characters.
    details = {entry.where: entry.detail for entry in source.quarantined}
    assert found[2] == found[3] == "its line is not a JSON object"
    assert (details["line 2"], details["line 3"]) == ("Expecting value, column 27", "list")
    assert found[4] == "its ID is no text"
    assert found[5] == "its ID names no file"
    assert found[6] == "it has no list gtboxes"
    assert (found[7], details["line 7"]) == ("another line has the same ID", "line 1")
    assert found[8] == found[9] == "its line is not a JSON object"
    # One person is stored; those of lines 4, 5 and 7 went with their images.
    assert (source.listed, source.annotated, source.lost) == (10, 5, 4)


@pytest.mark.parametrize(
    ("box", "why"),
    [
        (3, "the box is not an object"),
        ({**PERSON, "tag": "dog"}, "its tag is neither person nor mask"),
        ({**PERSON, "tag": ["mask"]}, "its tag is neither person nor mask"),
        ({"tag": "person"}, "its fbox is missing"),
        ({**PERSON, "fbox": [1, 2, 3]}, "its fbox is not four finite numbers"),
        ({**PERSON, "fbox": [1, 2, 3, float("nan")]}, "its fbox is not four finite numbers"),
        ({**PERSON, "fbox": [1, 2, 3, 1e12]}, "its fbox is not four finite numbers"),
        ({**PERSON, "fbox": {"x": 1}}, "its fbox is not four finite numbers"),
        ({**PERSON, "extra": {"ignore": "yes"}}, "its ignore is neither 0 nor 1"),
    ],
)
def test_a_bad_box_costs_itself(tmp_path: Path, box: Any, why: str) -> None:
    source = read(tmp_path, line("other"), line("a", PERSON, box))
    assert reasons(source) == [("annotation", "box 2 of line 2 (a.jpg)", why)]
    assert len(source.images[1].annotations) == 1 and source.annotated == 2


def test_numbers_given_as_text_and_missing_extras_are_read(tmp_path: Path) -> None:
    box = {"tag": "person", "fbox": ["1", 2.5, " 3 ", 4], "extra": None}
    (image,) = read(tmp_path, line("a", box)).images
    assert image.annotations == (Annotation(1, 0, (1.0, 2.5, 4.0, 6.5), False, None),)


def test_a_split_keeps_ids_and_counts_its_own_lines(tmp_path: Path) -> None:
    lines = [line(f"{n}", PERSON) for n in range(6)]
    (tmp_path / "a.odgt").write_text("\n".join(lines))
    source = crowdhuman.read_crowdhuman(
        str(tmp_path / "a.odgt"), "images", keep=lambda name: name in ("1.jpg", "4.jpg")
    )
    assert [image.image_id for image in source.images] == [2, 5]
    assert (source.listed, source.annotated, source.largest_id) == (2, 2, 6)


def test_a_bucket_and_another_encoding_of_lines(tmp_path: Path, bucket: str) -> None:
    data = b"\xef\xbb\xbf" + "\r\n".join([line("ä", PERSON), line("b")]).encode()
    files.write_bytes(f"{bucket}/a.odgt", data + b"\n\xff\xfe{}")
    source = crowdhuman.read_crowdhuman(f"{bucket}/a.odgt", "images")
    assert [image.file_name for image in source.images] == ["ä.jpg", "b.jpg"]
    (left_out,) = source.quarantined
    assert (left_out.what, left_out.where) == ("image", "line 3")
    assert "can't decode byte 0xff" in left_out.detail


def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"none\.odgt: there is no such annotation file"):
        crowdhuman.read_crowdhuman(str(tmp_path / "none.odgt"), "images")
    with pytest.raises(DataError, match="has no line; there is nothing to prepare"):
        read(tmp_path, "", "")
    monkeypatch.setattr(crowdhuman, "MAX_LINE", 1 << 20)
    with pytest.raises(DataError, match="line 2 is longer than 1 MiB; CrowdHuman's form is"):
        read(tmp_path, line("a"), " " * (1 << 20))
