"""Faults of real data sets, one case a row: each is repaired, left out or refused, prepare reports
it in a line, and nothing else is lost.

Every case is one image, case.jpg of 20 x 30 px with one box, changed in one way, beside an image
without a fault.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from cluster.errors import DataError
from cluster.formats.names import plain_name
from cluster.formats.read import SourcePaths
from cluster.prepare import listing
from cluster.prepare.plan import Options, plan_shards
from cluster.prepare.write import Prepared, write_shards
from cluster.shards import quarantine, read, verify
from detector.image import decode_image
from tests.support.preparing import lines_of, quiet, run_here

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
# A white block on black: wherever a picture is turned to, its box must hold all of it.
BLOCK = np.zeros((24, 40, 3), np.uint8)
BLOCK[8:12, 4:20] = 255
ORIENTATION = 0x0112


def encoded(picture: Image.Image | np.ndarray, form: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(
        sink, form, **options
    )
    return sink.getvalue()


def turned(pixels: np.ndarray, turn: int, form: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return encoded(pixels, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header promises `width` x `height` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


GOOD = encoded(PIXELS, quality=95)
IMAGE = {"id": 7, "file_name": "case.jpg", "height": 20, "width": 30}
BOX = {
    "id": 70,
    "image_id": 7,
    "category_id": 90,
    "bbox": [2, 3, 10, 10],
    "area": 80.5,
    "iscrowd": 0,
}
STORED = [2, 3, 12, 13]
LEFT_OUT, REPAIRED = "left out    1 x ", "repaired    1 x "
NO_LINE = ""


class Case(NamedTuple):
    """`line` is in the report. `boxes` are those stored for the case's image; None: the image
    itself is kept out.
    """

    name: str
    line: str
    boxes: list[list[float]] | None = [STORED]  # noqa: RUF012
    image: dict[str, Any] = {}  # noqa: RUF012
    box: dict[str, Any] = {}  # noqa: RUF012
    data: bytes | None = GOOD
    files: tuple[str, ...] = ("case.jpg",)


TINY = LEFT_OUT + "its box has a side under 1 px inside the picture (such as 70 of case.jpg)"
NO_NUMBERS = LEFT_OUT + "its bbox is not four finite numbers (such as 70)"
NO_FILE = LEFT_OUT + "its file_name names no file (such as "
ELSEWHERE = (
    LEFT_OUT
    + "its path is of another machine, and not one file of the images folder ends like it (such as "
)
NO_IMAGE_ID = LEFT_OUT + "its id is not an integer from 0 on (such as case.jpg)"
UNREADABLE = LEFT_OUT + "it cannot be decoded: "
OTHER_SIZE = REPAIRED + "image sizes wrong in the annotations, taken from the pixels"
UPRIGHT = REPAIRED + "images with an EXIF orientation, stored upright"
BEFORE = (
    REPAIRED + "images whose boxes were annotated before the EXIF turn, turned with the picture"
)
SECRET = {
    "../secret.jpg": ELSEWHERE + "/secret.jpg)",
    "a/../../secret.jpg": ELSEWHERE + "/secret.jpg)",
    "..\\secret.jpg": ELSEWHERE + "/secret.jpg)",
    "/etc/passwd": ELSEWHERE + "/etc/passwd)",
    "C:\\a.jpg": ELSEWHERE + "/a.jpg)",
    "a\0.jpg": NO_FILE + r"a\x00.jpg)",
    "..": NO_FILE + "..)",
}

IS_URL = LEFT_OUT + "its file_name is a URL; download the pictures and name the files (such as "
CURSOR = "\x1b[2J\r\n.jpg"
POINT = "whole numbers given with a point"

CASES = [
    Case("nothing is wrong", "boxes       2 of 2 listed, of 2 classes, of which 0 crowds"),
    Case("a crowd", "of 2 classes, of which 1 crowds", box={"iscrowd": 1}),
    Case("a box of no height", TINY, [], box={"bbox": [2, 3, 10, 0]}),
    Case("a box of negative width", TINY, [], box={"bbox": [12, 3, -10, 10]}),
    Case("a box under a pixel", TINY, [], box={"bbox": [2, 3, 0.5, 10]}),
    Case("a box outside the picture", TINY, [], box={"bbox": [40, 3, 10, 10]}),
    Case(
        "a box partly outside",
        REPAIRED + "boxes clipped to the picture",
        [[0, 3, 5, 20]],
        box={"bbox": [-5, 3, 10, 99]},
    ),
    Case("NaN in a box", NO_NUMBERS, [], box={"bbox": [2, 3, float("nan"), 10]}),
    Case("infinity in a box", NO_NUMBERS, [], box={"bbox": [2, 3, float("inf"), 10]}),
    Case("text in a box", NO_NUMBERS, [], box={"bbox": ["two", 3, 10, 10]}),
    Case(
        "numbers as text in a box",
        REPAIRED + "numbers given as text, read as numbers",
        box={"bbox": ["2", 3, "10.0", "1e1"]},
    ),
    Case(
        "a size given as text",
        REPAIRED + "numbers given as text, read as numbers",
        image={"height": "20.0"},
    ),
    Case("an annotation whose id is null", NO_LINE, box={"id": None}),
    Case("three numbers", NO_NUMBERS, [], box={"bbox": [2, 3, 10]}),
    Case("no box", LEFT_OUT + "its bbox is missing (such as 70)", [], box={"bbox": None}),
    Case(
        "no area",
        REPAIRED + "areas missing or not a number, filled with width x height",
        box={"area": None},
    ),
    Case("no iscrowd", REPAIRED + "iscrowd missing, filled with 0", box={"iscrowd": None}),
    Case(
        "no size",
        REPAIRED + "image sizes missing in the annotations, taken from the pixels",
        image={"height": None},
    ),
    Case(
        "an image without objects",
        "images      2 of 2 listed, of which 1 without objects",
        [],
        box={"image_id": 1},
    ),
    Case("annotation id 0", NO_LINE, box={"id": 0}),
    Case("an annotation id that is text", NO_LINE, box={"id": "seventy"}),
    Case(
        "an image that is not listed",
        LEFT_OUT + "its image_id is not in the list of images (such as 70)",
        [],
        box={"image_id": 8},
    ),
    Case(
        "a category that is not listed",
        LEFT_OUT + "its category_id is not in the list of categories (such as 70)",
        [],
        box={"category_id": 2},
    ),
    Case(
        "an image id that is text", NO_IMAGE_ID, None, image={"id": "7th"}, box={"image_id": "7th"}
    ),
    Case("a negative image id", NO_IMAGE_ID, None, image={"id": -7}, box={"image_id": -7}),
    Case("an image id of 70 bits", NO_IMAGE_ID, None, image={"id": 2**70}, box={"image_id": 2**70}),
    Case(
        "no file name",
        LEFT_OUT + "it has no file_name (such as 7)",
        None,
        image={"file_name": None},
    ),
    Case(
        "half a character in the name",
        LEFT_OUT + r"its file_name is not valid Unicode (such as \ud83d.jpg)",
        None,
        image={"file_name": "\ud83d.jpg"},
    ),
    *(
        Case(f"the path {name!r}", line, None, image={"file_name": name})
        for name, line in SECRET.items()
    ),
    Case(
        "a path of another machine",
        REPAIRED + "paths of another machine, matched with the files that end like them",
        image={"file_name": "C:\\Users\\ann\\pets\\case.jpg"},
    ),
    *(
        Case(f"the URL {name}", IS_URL + name, None, image={"file_name": name})
        for name in ("s3://other/a.jpg", "https://example.org/a.jpg?w=10")
    ),
    Case(
        "a time of day in the name of the folder",
        NO_LINE,
        image={"file_name": "2022-08-25_10:38:30/a.jpg"},
        files=("2022-08-25_10:38:30/a.jpg",),
    ),
    Case(
        "a name that is not ASCII",
        NO_LINE,
        image={"file_name": "straße/猫 🐈.jpg"},
        files=("straße/猫 🐈.jpg",),
    ),
    Case(
        "a name in another Unicode form",
        REPAIRED
        + "file names in another Unicode form than the files, taken as the files have them",
        image={"file_name": unicodedata.normalize("NFC", "bär.jpg")},
        files=(unicodedata.normalize("NFD", "bär.jpg"),),
    ),
    Case(
        "a name that moves the cursor",
        LEFT_OUT + r"the file is not in the images folder (such as \x1b[2J\r\n.jpg)",
        None,
        {"file_name": CURSOR},
    ),
    Case("an image id with a point", REPAIRED + POINT, image={"id": 7.0}),
    Case("a category id with a point", REPAIRED + POINT, box={"category_id": 90.0}),
    Case(
        "half an id",
        LEFT_OUT + "its category_id is not an integer from 0 on (such as 70)",
        [],
        box={"category_id": 90.5},
    ),
    Case(
        "no image id", LEFT_OUT + "its image_id is missing (such as 70)", [], box={"image_id": None}
    ),
    Case(
        "no file",
        LEFT_OUT + "the file is not in the images folder (such as case.jpg)",
        None,
        data=None,
    ),
    Case("an empty file", LEFT_OUT + "the file is empty (such as case.jpg)", None, data=b""),
    Case(
        "a truncated JPEG",
        UNREADABLE + "image file is truncated (such as case.jpg: ",
        None,
        data=GOOD[: len(GOOD) // 2],
    ),
    Case(
        "a JPEG without its end marker",
        UNREADABLE + "image file is truncated",
        None,
        data=GOOD[:-60],
    ),
    Case("a truncated PNG", UNREADABLE, None, data=encoded(PIXELS, "PNG")[:-400]),
    Case(
        "a file that is no image",
        UNREADABLE + "cannot identify image file (such as case.jpg)",
        None,
        data=b"404: there is nothing here",
    ),
    Case(
        "a web page",
        LEFT_OUT + "it is a web page, not a picture (such as case.jpg)",
        None,
        data=b"<html>404</html>",
    ),
    Case(
        "a picture that was made smaller later",
        REPAIRED + "images of another size than in the annotations, whose boxes were scaled with"
        " them",
        image={"height": 40, "width": 60},
        box={"bbox": [4, 6, 20, 20]},
    ),
    Case(
        "a file name from coco_url",
        REPAIRED + "file names taken from coco_url, as in LVIS",
        image={"file_name": None, "coco_url": "http://images.example.org/sets/case.jpg?a=1"},
        files=("sets/case.jpg",),
    ),
    Case(
        "a file name that is a number",
        LEFT_OUT + "its file_name is no text (such as 7)",
        None,
        image={"file_name": 7},
    ),
    Case(
        "an icon, decoded while it is opened",
        UNREADABLE + "cannot identify image file",
        None,
        data=encoded(PIXELS, "ICO", sizes=[(30, 20)]),
    ),
    Case(
        "a program for Ghostscript",
        UNREADABLE + "cannot identify image file",
        None,
        data=encoded(PIXELS, "EPS"),
    ),
    Case("a PNG named .jpg", NO_LINE, data=encoded(PIXELS, "PNG")),
    Case("a JPEG without suffix", NO_LINE, image={"file_name": "case"}, files=("case",)),
    Case(
        "an animated GIF",
        NO_LINE,
        data=encoded(PIXELS, "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
    ),
    Case("a TIFF", NO_LINE, data=encoded(PIXELS, "TIFF")),
    Case("grey", NO_LINE, data=encoded(Image.new("L", (30, 20), 90))),
    Case("CMYK", NO_LINE, data=encoded(Image.new("CMYK", (30, 20)))),
    Case("16 bits", NO_LINE, data=encoded(np.full((20, 30), 40_000, np.uint16), "PNG")),
    Case("alpha", NO_LINE, data=encoded(Image.new("RGBA", (30, 20), (9, 9, 9, 0)), "PNG")),
    Case("grey with alpha", NO_LINE, data=encoded(Image.new("LA", (30, 20)), "PNG")),
    Case("a palette", NO_LINE, data=encoded(Image.fromarray(PIXELS).convert("P"), "PNG")),
    Case(
        "a palette with transparency",
        NO_LINE,
        data=encoded(Image.fromarray(PIXELS).convert("P"), "PNG", transparency=bytes(range(256))),
    ),
    Case("black and white", NO_LINE, data=encoded(Image.new("1", (30, 20)), "PNG")),
    Case("a size that is wrong", OTHER_SIZE, image={"height": 10, "width": 10}),
    Case("a size the wrong way round", OTHER_SIZE, image={"height": 30, "width": 20}),
    Case(
        "a decompression bomb",
        LEFT_OUT + "it has more pixels than the 1000000 allowed; --max_pixels sets the"
        " limit (such as case.jpg: 60000x60000)",
        None,
        data=bomb(60_000, 60_000),
    ),
    Case(
        "one row too many",
        LEFT_OUT + "it has more pixels than the 1000000 allowed; --max_pixels sets the limit",
        None,
        data=encoded(Image.new("L", (1000, 1001))),
    ),
    Case(
        "a picture as large as allowed",
        NO_LINE,
        image={"height": 1000, "width": 1000},
        data=encoded(Image.new("L", (1000, 1000))),
    ),
    Case(
        "a picture of another shape",
        LEFT_OUT + "its annotations are for a picture of another shape; leave the size out of them"
        " if the boxes are right (such as case.jpg: 90 x 20 px, the file has 30 x 20)",
        None,
        image={"height": 20, "width": 90},
    ),
    Case("EXIF that makes no sense", NO_LINE, data=turned(PIXELS, 9)),
    Case("a turned PNG", UPRIGHT, image={"height": 30, "width": 20}, data=turned(PIXELS, 6, "PNG")),
]

# The block of BLOCK, XYXY in the file: 4, 8, 20, 12 of 40 x 24. By hand: mirrored x -> 40 - x,
# mirrored y -> 24 - y, swapped where the sides are.
BLOCKS = {
    1: [4, 8, 20, 12],
    2: [20, 8, 36, 12],
    3: [20, 12, 36, 16],
    4: [4, 12, 20, 16],
    5: [8, 4, 12, 20],
    6: [12, 4, 16, 20],
    7: [12, 20, 16, 36],
    8: [8, 20, 12, 36],
}
IN_FILE = {"bbox": [4, 8, 16, 4]}


def upright_size(turn: int) -> dict[str, int]:
    return {"height": 40, "width": 24} if turn >= 5 else {"height": 24, "width": 40}


for number, (left, top, right, bottom) in BLOCKS.items():
    seen = {"bbox": [left, top, right - left, bottom - top]}
    expected = [[left, top, right, bottom]]
    line = UPRIGHT if number > 1 else NO_LINE
    CASES.append(
        Case(
            f"EXIF {number}, annotated upright",
            line,
            expected,
            upright_size(number),
            seen,
            turned(BLOCK, number),
        )
    )
    if number >= 5:
        CASES.append(
            Case(
                f"EXIF {number}, annotated before turning",
                BEFORE,
                expected,
                {"height": 24, "width": 40},
                IN_FILE,
                turned(BLOCK, number),
            )
        )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_source(folder: Path, case: Case, **lists: list[dict[str, Any]]) -> SourcePaths:
    content = {
        "images": [
            {"id": 1, "file_name": "good.jpg", "height": 20, "width": 30},
            {**IMAGE, **case.image},
        ],
        "annotations": [{**BOX, "id": 10, "image_id": 1, "category_id": 3}, {**BOX, **case.box}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        **lists,
    }
    for name, data in {
        "good.jpg": encoded(PIXELS + 1),
        **dict.fromkeys(case.files, case.data),
    }.items():
        if data is not None:
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images" / name).write_bytes(data)
    (folder / "secret.jpg").write_bytes(GOOD)
    (folder / "coco.json").write_text(json.dumps(content))
    return SourcePaths("case", "coco", str(folder / "coco.json"), str(folder / "images"))


def prepare(source: SourcePaths, output: Path) -> Prepared:
    """Plan and write, with the jobs run in this process."""
    options = Options(max_quarantined=0.5, max_quarantined_annotations=1.0, max_pixels=10**6)
    plan = plan_shards([source], output=str(output), options=options)
    run_here(plan)
    return write_shards(plan, say=quiet)


# Pillow warns of pictures whose transparency it could show better; colour is all that is asked for.
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_fault_of_real_data(case: Case, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", case)
    before = digests(tmp_path / "source")
    prepared = prepare(source, tmp_path / "out")
    assert digests(tmp_path / "source") == before

    reported = "\n".join(lines_of(prepared))
    assert case.line in reported
    if case.line is NO_LINE:
        assert "repaired" not in reported and "left out" not in reported

    assert prepared.shard_set is not None
    verify.verify_shard_set(prepared.shard_set)
    group = [
        read.read_row_group(prepared.shard_set.locate_group(n))
        for n in range(len(prepared.shard_set.rows_per_group))
    ]
    rows = {row["image_id"]: row for table in group for row in table.to_pylist()}
    # The image that nothing is wrong with is always there, whole.
    assert (
        rows[1]["boxes"][:1] == [STORED]
        and rows[1]["labels"][:1] == [0]
        and rows[1]["image"] == encoded(PIXELS + 1)
    )
    assert set(rows) == ({1} if case.boxes is None else {1, 7})
    if case.boxes is not None:
        row = rows[7]
        assert row["boxes"] == case.boxes and row["labels"] == [1] * len(case.boxes)
        assert decode_image(row["image"]).shape == (row["height"], row["width"], 3)
        assert row["sha256"] == hashlib.sha256(case.data or b"").digest()
        # Bytes are copied unless the picture had to be turned.
        assert (row["image"] == case.data) == ("EXIF orientation" not in reported)
        if case.name.startswith("EXIF 1") or "annotated" in case.name:
            bright = decode_image(row["image"])[:, :, 0] > 128
            (x1, y1, x2, y2) = (int(corner) for corner in row["boxes"][0])
            # JPEG rings around edges: of 4 x 16 pixels nearly all are inside, nearly none outside.
            assert (
                bright[y1:y2, x1:x2].sum() >= 60 and bright.sum() <= bright[y1:y2, x1:x2].sum() + 4
            )

    if case.boxes is None:
        # Nothing of the record is lost: the image's, and that of the annotation which goes with it.
        (record,) = [json.loads(one.raw) for one in prepared.quarantined if one.what == "image"]
        name = (IMAGE | case.image)["file_name"]
        if ELSEWHERE in case.line:
            name = plain_name(name)
        expected = IMAGE | case.image | {"file_name": name, "annotations": [BOX | case.box]}
        assert record == expected
    elif not case.boxes:
        (record,) = [json.loads(one.raw) for one in prepared.quarantined] or [{}]
        assert (
            case.name == "an image without objects"
            or record.items() >= (BOX | case.box).items()
            or "NaN" in prepared.quarantined[0].raw
        )

    counts = prepared.index.counts
    assert counts.listed_images == 2 == counts.images + counts.quarantined_images
    assert (
        counts.listed_annotations
        == 2
        == counts.boxes + counts.quarantined_annotations + counts.lost_annotations
    )
    assert len(quarantine.read_quarantine(str(tmp_path / "out"))) == counts.quarantined


def test_a_very_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "source", Case("large", "", data=GOOD + bytes(1 << 17)))
    monkeypatch.setattr(listing, "MAX_FILE_BYTES", 1 << 17)
    prepared = prepare(source, tmp_path / "out")
    # The picture and 2^17 = 131072 bytes behind it.
    line = f"the file is larger than 0 MiB (such as case.jpg: {len(GOOD) + (1 << 17)} bytes)"
    assert LEFT_OUT + line in lines_of(prepared)


@pytest.mark.parametrize(
    ("name", "lists", "message"),
    [
        (
            "images",
            {"images": [IMAGE, {**IMAGE, "file_name": "good.jpg"}]},
            "image id 7 is used more than once",
        ),
        ("annotations", {"annotations": [BOX, BOX]}, "annotation id 70 is used more than once"),
        (
            "text ids",
            {"annotations": [{**BOX, "id": "a"}, {**BOX, "id": "a"}]},
            "annotation id a is used more than once",
        ),
        (
            "categories",
            {"categories": [{"id": 90, "name": "a"}, {"id": 90, "name": "b"}]},
            "category id 90 is used more than once",
        ),
        (
            "half a character",
            {"categories": [{"id": 90, "name": "\ud83d"}]},
            "must have an integer id and a name",
        ),
    ],
)
def test_a_file_with_ambiguous_ids_is_refused(
    tmp_path: Path, name: str, lists: dict[str, Any], message: str
) -> None:
    source = write_source(tmp_path / "source", Case(name, ""), **lists)
    with pytest.raises(DataError, match=message):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_name_that_is_not_unicode_is_refused_in_one_line(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", Case("", ""))
    (tmp_path / "source/images" / b"\xff.jpg".decode("utf-8", "surrogateescape")).write_bytes(GOOD)
    with pytest.raises(
        DataError,
        match=r"contains a file whose name is not UTF-8: b'.*xff.jpg'; rename or remove it",
    ):
        prepare(source, tmp_path / "out")


def test_the_same_picture_twice(tmp_path: Path) -> None:
    images = [
        {**IMAGE, "id": number, "file_name": name}
        for number, name in ((1, "good.jpg"), (7, "case.jpg"), (5, "copy.jpg"), (9, "case.jpg"))
    ]
    source = write_source(
        tmp_path / "source", Case("", "", files=("case.jpg", "copy.jpg")), images=images
    )
    prepared = prepare(source, tmp_path / "out")
    # case.jpg has the boxes.
    assert "duplicate   2 x the picture of another image (such as copy.jpg = case.jpg)" in lines_of(
        prepared
    )
    assert prepared.index.counts.images == 4 and prepared.quarantined == []
