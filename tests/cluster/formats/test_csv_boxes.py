from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import DataError
from cluster.formats.annotations import Annotation, ImageRecord, Source
from cluster.formats.csv_boxes import read_csv
from cluster.shards.format import Category

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def read(folder: Path, text: str | bytes, **options: object) -> Source:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "boxes.csv").write_bytes(data)
    return read_csv(str(folder / "boxes.csv"), str(folder), **options)  # pyright: ignore


def reasons(source: Source) -> list[tuple[str, str, str]]:
    return [(record.what, record.where, record.why) for record in source.quarantined]


def test_a_good_file(tmp_path: Path) -> None:
    lines = (
        "b/1.jpg,640,480,dog,10,20,30.5,40\n\na.jpg,,,cat,0,0,5,5\nb/1.jpg,640,480,cat,1,2,3,4\n"
    )
    source = read(tmp_path, HEADER + lines + "empty.jpg,64,48,,,,,\n")
    assert source.categories == (Category(0, 1, "cat"), Category(1, 2, "dog"))
    # The number of a box is that of its line: the header is line 1, the blank one line 3.
    assert list(source.images) == [
        ImageRecord(
            1,
            "b/1.jpg",
            480,
            640,
            (
                Annotation(2, 1, (10, 20, 30.5, 40), False, None),
                Annotation(5, 0, (1, 2, 3, 4), False, None),
            ),
        ),
        ImageRecord(2, "a.jpg", None, None, (Annotation(4, 0, (0, 0, 5, 5), False, None),)),
        ImageRecord(3, "empty.jpg", 48, 64, ()),
    ]
    assert (source.listed, source.annotated, source.lost, source.quarantined) == (3, 3, 0, ())


@pytest.mark.parametrize(
    "text",
    [
        "﻿filename;class;xmin;ymin;xmax;ymax\r\na.jpg;cat;1;2;3;4\r\n",
        "ymax\t xmax\tYMin\txmin\tClass\tFilename\n4\t3\t2\t1\tcat\ta.jpg",
        '"filename", "class","xmin","ymin","xmax","ymax"\n"a.jpg", "cat","1","2","3","4",,\n',
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path: Path, text: str) -> None:
    (image,) = read(tmp_path, text).images
    assert image.file_name == "a.jpg" and image.annotations[0].box == (1, 2, 3, 4)


NOT_NUMBERS = "its box is not four finite numbers"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"a.jpg,9,9,cat,1,2,nan,4", NOT_NUMBERS),
        (b"a.jpg,9,9,cat,1,2,1e99,4", NOT_NUMBERS),
        (b"a.jpg,9,9,cat,1,2,,4", NOT_NUMBERS),
        (b"a.jpg,9,9,,1,2,3,4", "its class has no name"),
        (b"a.jpg,9,9,c\xfft,1,2,3,4", "the name of its class is not valid Unicode"),
        (b"\xff.jpg,9,9,cat,1,2,3,4", "its file_name is not valid Unicode"),
        (b",9,9,cat,1,2,3,4", "it has no file_name"),
        (b"..,9,9,cat,1,2,3,4", "its file_name names no file"),
        (b"a.jpg,9,9,cat,1,2", "its line has another number of columns than the first"),
        (b"a.jpg,9,9,cat,1,2,3,4,5", "its line has another number of columns than the first"),
        (b'"a.jpg,9,9,cat,1,2,3,4', "a quotation mark in its line has no partner"),
    ],
)
def test_a_bad_line_costs_itself(tmp_path: Path, line: bytes, why: str) -> None:
    good = b"a.jpg,9,9,cat,1,2,3,4\n"
    source = read(tmp_path, HEADER.encode() + good + line + b"\n" + good)
    assert reasons(source) == [("annotation", "line 3", why)]
    assert [one.id for one in source.images[0].annotations] == [2, 4]
    assert (source.listed, source.annotated) == (1, 3)


def test_corners_in_another_order_are_ordered(tmp_path: Path) -> None:
    source = read(tmp_path, HEADER + "a.jpg,9,9,cat,3,4,1,2\n")
    assert source.images[0].annotations[0].box == (1, 2, 3, 4)
    assert source.repairs == {"boxes whose corners are given in another order": 1}


def test_classes_txt_gives_the_order_of_the_labels(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    source = read(tmp_path, HEADER + "a.jpg,9,9,cat,1,2,3,4\na.jpg,9,9,cow,1,2,3,4\n")
    assert [category.name for category in source.categories] == ["dog", "cat"]
    assert [one.label for one in source.images[0].annotations] == [1]
    assert reasons(source) == [("annotation", "line 3", "its class is not in classes.txt")]


def test_a_split_keeps_ids_and_labels(tmp_path: Path) -> None:
    lines = HEADER + "a.jpg,9,9,dog,1,2,3,4\nb.jpg,9,9,cat,1,2,3,4\na.jpg,9,9,cow,1,2,3,x\n"
    first = read(tmp_path, lines, keep=lambda name: name == "a.jpg")
    second = read(tmp_path, lines, keep=lambda name: name == "b.jpg")
    whole = read(tmp_path, lines)
    assert [*first.images, *second.images] == list(whole.images)
    assert first.categories == second.categories == whole.categories
    assert (first.listed, first.annotated, second.listed, second.annotated) == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,class,x,y\n", "its first line, 'filename,class,x,y', lacks xmin, ymin, xmax"),
        (HEADER, "has no line behind the first; there is nothing to prepare"),
        (HEADER + "a.jpg,9,9,cat,1,2,3,x\n", r"no usable box in any .* \(1 x its box is not four"),
        (HEADER + "a.jpg,9,9,,,,,\n", r"no usable box in any of its lines \(there are none\)"),
        (HEADER.encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)
