"""report.html: the numbers by hand, nothing fetched, and no name in the data is taken for HTML."""

from __future__ import annotations

import io
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cluster.errors import DataError
from cluster.reports import data_report
from cluster.shards import index, write
from cluster.shards.format import Category, Row, shard_name
from cluster.shards.index import ShardSet
from cluster.shards.quarantine import Quarantined
from cluster.storage import files
from cluster.storage.uris import join
from detector.palette import letters_of, place_of

NASTY = '<script>alert("x")</script>&\'ä'


def jpeg(height: int, width: int, value: int = 90) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def row(
    image_id: int,
    boxes: list[list[float]],
    labels: list[int],
    *,
    crowd: tuple[int, ...] = (),
    name: str | None = None,
) -> Row:
    """A grey picture of 400 x 672 px, which the default canvas of 800 x 1344 doubles."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    area = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
    crowds = [i in crowd for i in range(len(labels))]
    return Row(
        image_id,
        name or f"{image_id}.jpg",
        jpeg(400, 672),
        400,
        672,
        array,
        labels,
        crowds,
        area,
        0,
        bytes(32),
    )


def write_set(uri: str, rows: list[Row], *, names: list[str]) -> ShardSet:
    shard = write.write_shard(uri, shard_name(0, 1), rows, row_group_rows=4)
    categories = tuple(Category(k, k + 1, name) for k, name in enumerate(names))
    return index.write_index(uri, index.Index(categories, (shard,)))


def write_page(shard_set: ShardSet, quarantined: list[Quarantined] | None = None, **more) -> str:
    uri = data_report.write_report(shard_set, quarantined or [], **{"repairs": {}} | more)
    assert uri == join(shard_set.uri, "report.html")
    return files.read_bytes(uri).decode()


class Reader(HTMLParser):
    """Checks that every tag is closed in order; collects tags, attributes and visible text."""

    VOID = ("meta", "image", "path", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data if data.endswith(" ") else data + " "


def words(page: str) -> str:
    return " ".join(Reader(page).text.split())


def test_the_numbers_by_hand(tmp_path):
    # Doubled: 32 x 32 at (16, 16) -> an anchor of P3 exactly, its centre 32, 32 on a position. 8 x
    # 8 -> 16 x 16 inside anchors of 32: 256 / 1024.
    rows = [
        row(1, [[8, 8, 24, 24], [100, 100, 108, 108]], [0, 1]),
        row(2, [[16, 16, 32, 32], [0, 0, 300, 300]], [0, 0], crowd=(1,)),
        row(3, [], []),
    ]
    text = words(write_page(write_set(str(tmp_path), rows, names=["cat", "dog", "emu"])))
    assert (
        "3 images 3 objects 3 classes 1 images without boxes 1 crowds 0 records left out 1 shards"
        in text
    )
    assert (
        "cat 2 in 2 images dog 1 in 1 image emu 0 in 0 images" in text
        and "1 of 3 classes have no object." in text
    )
    # Recall 2 of 3; mean (1 + 1 + 0.25) / 3.
    assert "all 3 66.7% 0.750 small 3 66.7% 0.750 medium 0 - - large 0 - -" in text
    assert "small, below 32 px: 3 (100%)" in text and "mean 1.0, median 1, most 2" in text
    assert "672 x 400 3 Scaled by 2.00 to fit the canvas (median; 2.00 to 2.00)." in text
    assert "Nothing had to be repaired." in text and "Nothing was left out." in text


def test_each_bar_counts_its_own(tmp_path):
    # Sides 8, 32, 40, 96 and 100 px, all squares but the last, which is 50 x 200.
    rows = [
        row(
            1,
            [[0, 0, 8, 8], [0, 0, 32, 32], [0, 0, 40, 40], [0, 0, 96, 96], [0, 0, 50, 200]],
            [0] * 5,
        )
    ]
    page = write_page(write_set(str(tmp_path), rows, names=["cat"]))
    bars = re.findall(r'<i class="(\w+)" style="height:([\d.]+)%" title="([^"]*)"', page)
    one_high = {unescape(title): kind for kind, height, title in bars if float(height) > 0}
    # Edges 32 x 3^(k / 4): 6.16, 8.11, ...; 32, 42.11; 96, 126.3.
    assert (
        one_high["6.2 to 8.1 px: 1"] == "small"
        and one_high["32 to 42 px: 2"] == "medium"
        and one_high["96 to 126 px: 2"] == "large"
    )
    assert "height / width about 1: 4" in one_high and "height / width about 4: 1" in one_high
    assert "5 objects: 1" in one_high
    assert (
        "small, below 32 px: 1 (20%) medium, 32 to 96 px: 2 (40%) large, from 96 px: 2 (40%)"
        in words(page)
    )


def test_names_with_html_in_them_are_escaped(tmp_path):
    rows = [row(1, [[8, 8, 24, 24]], [0], name=NASTY)]
    left_out = [Quarantined(NASTY, NASTY, NASTY, NASTY)]
    page = write_page(
        write_set(str(tmp_path / "a&<b>"), rows, names=[NASTY]),
        left_out,
        repairs={NASTY: 2},
        notes=[NASTY],
    )
    reader = Reader(page)
    assert "<script" not in page and not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert reader.text.count(NASTY) >= 5 and "a&<b>" in reader.text
    assert not [name for name, _ in reader.attributes if name.startswith("on")]


def test_nothing_is_fetched(tmp_path):
    page = write_page(write_set(str(tmp_path), [row(1, [[8, 8, 24, 24]], [0])], names=["cat"]))
    targets = [
        value
        for name, value in Reader(page).attributes
        if name in ("href", "src", "xlink:href", "srcset", "action")
    ]
    assert targets and all(value.startswith(("data:image/jpeg;base64,", "#")) for value in targets)
    assert (
        "http:" not in page
        and "https:" not in page
        and "@import" not in page
        and "url(" not in page
    )
    assert "default-src 'none'" in page


def test_the_same_set_gives_the_same_bytes(tmp_path):
    opened = write_set(
        str(tmp_path),
        [row(n, [[8, 8, 24 + n, 24]], [n % 2]) for n in range(20)],
        names=["cat", "dog"],
    )
    first = write_page(opened)
    # prepare writes the index last.
    files.delete_file(str(tmp_path / "index.json"))
    assert write_page(opened) == first


def test_a_picture_shows_its_boxes(tmp_path):
    picture = row(5, [[8, 8, 24.5, 24], [1, 2, 3, 4], [0, 0, 99, 99]], [1, 1, 0], crowd=(2,))
    page = write_page(write_set(str(tmp_path), [picture], names=["cat", "dog"]))
    assert '<svg viewBox="0 0 672 400">' in page
    assert '<path class="c1" d="M8.0 8.0H24.5V24.0H8.0ZM1.0 2.0H3.0V4.0H1.0Z"/>' in page
    assert '<path class="c0 crowd" d="M0.0 0.0H99.0V99.0H0.0Z"/>' in page
    assert "5.jpg 672 x 400 A cat 1 B dog 2" in words(page)
    # The largest box first.
    assert re.findall(r">([A-Z]+)</text>", page) == ["A", "B", "B"]


def test_a_class_has_its_colour_and_its_letter_on_every_picture(tmp_path):
    # Each of these classes is on two pictures, each time with another one.
    pairs = [(k, (k + 1) % 30) for k in range(20, 30)]
    rows = [row(n, [[8, 8, 24, 24], [40, 40, 60, 60]], pair) for n, pair in enumerate(pairs)]
    page = write_page(write_set(str(tmp_path), rows, names=[f"class {k}" for k in range(30)]))
    found = re.findall(r'<span class="(c\d)"><b>([A-Z]+)</b> class (\d+) 1</span>', page)
    assert len(found) == 20
    for colour, letters, label in found:
        assert (colour, letters) == (f"c{place_of(int(label))}", letters_of(int(label)))


def test_at_most_twelve_pictures_and_few_boxes_keep_the_page_small(tmp_path):
    generator = np.random.default_rng(0)
    corner = generator.random((2000, 2)) * 300
    crowded = [
        row(n, np.concatenate([corner, corner + 9 + n], axis=1).tolist(), [0] * 2000)
        for n in range(16)
    ]
    page = write_page(write_set(str(tmp_path), crowded, names=["cat"]))
    assert page.count('<figure class="sample">') == 12 and len(page) < 1_500_000
    assert "the 500 largest of 2,000 boxes" in page


def test_many_classes_have_few_bars(tmp_path):
    # Class k of 1200 has an object if k is below 100; class 0 has one more.
    rows = [row(n, [[8, 8, 24, 24]] * 20, list(range(20 * n, 20 * n + 20))) for n in range(5)] + [
        row(9, [[8, 8, 24, 24]], [0])
    ]
    page = write_page(write_set(str(tmp_path), rows, names=[f"class {k}" for k in range(1200)]))
    text = words(page)
    assert "class 0 2 in 2 images class 1 1 in 1 image" in text
    assert (
        "1,100 of 1,200 classes have no object. The other 1,160 classes: 60 objects, 59.4% of all"
        " class 40 1 · class 41 1" in text
    )
    assert page.count(" in 1 image<") == 39


def test_left_out_entries_are_grouped_by_reason(tmp_path):
    left_out = [
        Quarantined("image", f"{n}.jpg", "it is truncated", "{}", f"{n} bytes") for n in range(25)
    ]
    left_out.append(Quarantined("annotation", "918", "the box is under 1 px", "{}"))
    page = write_page(
        write_set(str(tmp_path), [row(1, [], [])], names=["cat"]),
        left_out,
        repairs={"boxes clipped": 3},
        notes=["Look here."],
    )
    text = words(page)
    assert (
        "26 records left out" in text and "3 boxes clipped" in text and "Notes Look here." in text
    )
    assert "25 x it is truncated image 0.jpg : 0 bytes image 1.jpg" in text
    assert "19.jpg" in text and "20.jpg" not in text and "and 5 more" in text
    assert text.index("25 x") < text.index("1 x the box is under 1 px annotation 918")


def test_many_reasons_are_counted(tmp_path):
    left_out = [Quarantined("image", f"{n}.jpg", f"reason {n}", "{}") for n in range(50)]
    text = words(write_page(write_set(str(tmp_path), [row(1, [], [])], names=["cat"]), left_out))
    assert text.count("x reason") == 40 and "And 10 more reasons, 10 records." in text


def test_sizes_beyond_the_usual_have_bars(tmp_path):
    page = write_page(
        write_set(
            str(tmp_path), [row(1, [[0, 0, 1, 1], [0, 0, 3000, 3000]], [0, 0])], names=["cat"]
        )
    )
    assert re.search(r'class="small" style="height:50.00%" title="0.9 to 1.2 px: 1"', page)
    assert re.search(r'class="large" style="height:50.00%" title="\d+ to \d+ px: 1"', page)


def test_a_set_without_objects_or_images(tmp_path):
    assert "0 objects" in words(
        write_page(write_set(str(tmp_path / "empty"), [row(1, [], [])], names=["cat"]))
    )
    assert "No image." in words(write_page(index.write_index(str(tmp_path), index.Index(()))))


def test_in_a_bucket(bucket):
    assert "1 images" in words(
        write_page(write_set(f"{bucket}/cells", [row(1, [[8, 8, 24, 24]], [0])], names=["cat"]))
    )


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    broken = Row(
        3, "3.jpg", b"no picture", 10, 10, np.zeros((0, 4), np.float32), [], [], [], 0, bytes(32)
    )
    with pytest.raises(DataError, match=r"3.jpg \(image_id 3\): it cannot be decoded"):
        write_page(write_set(str(tmp_path), [broken], names=["cat"]))
