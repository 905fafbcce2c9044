"""The pages and files of an evaluation and of a comparison, on a small set of painted pictures:
what they say is what the arithmetic found, and they stand alone.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.errors import UsageError
from cluster.reports.evaluation_report import Source
from cluster.scoring import compare_packages, evaluate
from cluster.scoring.compare_packages import Candidate
from cluster.scoring.report_files import write_report_files
from cluster.scoring.slices import single_values, slices_of
from cluster.scoring.truths import read_truths
from cluster.shards.classes import ClassMatch
from cluster.shards.format import Category, Row
from cluster.shards.index import ShardSet
from detector.coco_matching import match
from detector.decode import Detections
from detector.judgement import judge
from detector.metrics import coco_table
from detector.scores import shown
from tests.support.judged_sets import NAMES, judged_set
from tests.support.shard_sets import row, write_set

CATEGORIES = tuple(Category(label, 10 * label + 5, name) for label, name in enumerate(NAMES))
CLASSES = ClassMatch(NAMES, (0, 1, 2))


def picture(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (200, 160), (40 + number, 90, 120)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The truths of `judged_set()`; two folders, a third of the images in the first. The second
    picture is damaged, and a name tries to be a script.
    """
    truths, _ = judged_set()
    rows = [
        Row(
            image_id=truth.image_id,
            file_name=f"{'day' if truth.image_id % 3 else 'night'}/{truth.image_id}<script>.png",
            image=b"damaged" if truth.image_id == 2 else picture(truth.image_id),
            height=truth.height,
            width=truth.width,
            boxes_N4=truth.boxes_N4.astype(np.float32),
            labels_N=truth.labels_N.tolist(),
            crowd_N=truth.crowd_N.tolist(),
            area_N=truth.area_N.tolist(),
            source=0,
            sha256=bytes(32),
        )
        for truth in truths
    ]
    uri = str(tmp_path_factory.mktemp("sets") / "val")
    return write_set(uri, [rows[:25], rows[25:]], row_group_rows=10, categories=CATEGORIES)


@pytest.fixture(scope="module")
def written(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    truths, (_, detections) = read_truths(shard_set), judged_set()
    table = evaluate.evaluate_detections(detections, truths, NAMES, [evaluate.coco, evaluate.voc])
    judged = judge(truths, detections, NAMES, resamples=30)
    write_report_files(
        judged,
        table,
        shard_set,
        CLASSES,
        str(folder),
        source=Source("models:/cells/3", shard_set.uri, shard_set.digest),
        columns=["file_name"],
        notes=["<b>a note</b>"],
    )
    return folder


def test_the_page_stands_alone_and_shows_each_part(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert len(page) < 3_000_000 and "default-src 'none'" in page
    assert "<script" not in page and not re.search(r"(src|href)=\"(?!data:image/jpeg)", page)
    for heading in (
        "The numbers",
        "Errors, and what they cost",
        "Classes and thresholds",
        "AP by class and size",
        "Precision over recall",
        "Precision, recall and F1 over the threshold",
        "What objects were taken for",
        "What a score is worth",
        "Parts of the set",
        "The worst pictures",
        "The best pictures",
        "Labels to look at",
    ):
        assert f"<h2>{heading}</h2>" in page, heading
    assert page.count('<figure class="judged">') > 24 and "&lt;b&gt;a note" in page
    assert "The picture cannot be read" in page


def test_columns_of_the_confusions_have_the_names_of_the_rows(written: Path) -> None:
    page = (written / "report.html").read_text()
    table = page[page.index('<table class="confusion">') :].split("</table>")[0]
    columns = re.findall(r'<th title="(\w+)"><span>(\w+)</span></th>', table)
    rows = re.findall(r'<tr><th title="(\w+)">(\w+)</th>', table)
    assert columns == [(name, name) for name in (*NAMES, "missed")]
    assert rows == [(name, name) for name in (*NAMES, "nothing")]


def test_the_page_says_the_numbers_of_the_table(written: Path, shard_set: ShardSet) -> None:
    page = (written / "report.html").read_text()
    truths, (_, detections) = read_truths(shard_set), judged_set()
    table = coco_table(truths, detections, NAMES)
    for name, value in table.summary.items():
        assert f"<tr><th>{name}</th><td>{shown(value, 3)}</td>" in page
    judged = judge(truths, detections, NAMES, resamples=0)
    for kind, words in (("box", "box does not fit"), ("missed", "missed")):
        cost = judged.errors.cost[kind]
        assert re.search(rf"<th>{words}</th><td>\d+</td><td>{cost:.3f}</td>", page)


def test_the_files_hold_the_thresholds_and_the_suspects(written: Path) -> None:
    thresholds = json.loads((written / "thresholds.json").read_text())
    assert set(thresholds["classes"]) == set(NAMES) and thresholds["rule"] == "f1"
    suspects = json.loads((written / "suspects.json").read_text())
    named = {image["id"]: image["file_name"] for image in suspects["images"]}
    assert suspects["annotations"] and {
        each["image_id"] for each in suspects["annotations"]
    } == set(named)
    assert all(f"/{id_}<" in name for id_, name in named.items())
    assert [each["id"] for each in suspects["categories"]] == [5, 15, 25]


def test_each_part_of_the_set_has_the_numbers_of_its_images_alone(shard_set: ShardSet) -> None:
    truths, (_, detections) = read_truths(shard_set), judged_set()
    parts = list(slices_of(match(truths, detections, NAMES), shard_set, ["file_name"]))
    # One source and one size are no parts.
    assert {(part.column, part.value) for part in parts} == {
        ("file_name", "day"),
        ("file_name", "night"),
    }
    for part in parts:
        its = [truth for truth in truths if (truth.image_id % 3 > 0) == (part.value == "day")]
        ids = {truth.image_id for truth in its}
        found = {id_: found for id_, found in detections.items() if id_ in ids}
        expected = coco_table(its, found, NAMES).summary
        assert part.images == len(its)
        for name, interval in part.scores.items():
            assert interval is not None and interval.estimate == expected[name]
            assert interval.low <= interval.estimate <= interval.high


def test_numbers_with_many_values_are_cut_into_quarters(shard_set: ShardSet) -> None:
    truths, (_, detections) = read_truths(shard_set), judged_set()
    parts = list(slices_of(match(truths, detections, NAMES), shard_set, ["image_id"]))
    assert [part.value for part in parts] == [
        "1 to 10.8",
        "10.8 to 20.5",
        "20.5 to 30.2",
        "30.2 to 40",
    ]
    assert [part.images for part in parts] == [10, 10, 10, 10]


def test_sizes_are_named_by_their_sides(tmp_path: Path) -> None:
    def parts(sides: list[tuple[int, int]]) -> list[tuple[str, int]]:
        rows = [
            replace(row(number, 1), height=height, width=width, source=0)
            for number, (height, width) in enumerate(sides, start=1)
        ]
        made = write_set(str(tmp_path / str(len(sides))), [rows], categories=CATEGORIES)
        found = match(read_truths(made), {}, NAMES)
        return [(part.value, part.images) for part in slices_of(found, made)]

    # Upright and lying pictures of one size are one part.
    assert parts([(480, 640), (640, 480), (600, 800)]) == [("640x480", 2), ("800x600", 1)]
    # 16 sizes of 10, 20, .. 160 px: the lowest quarter ends with 40 px, the second with 80 px.
    assert parts([(10, n) for n in range(1, 17)]) == [
        ("up to 10x4", 4),
        ("above 10x4, up to 10x8", 4),
        ("above 10x8, up to 12x10", 4),
        ("above 12x10", 4),
    ]


def test_a_column_with_one_value_is_named(shard_set: ShardSet) -> None:
    assert single_values(shard_set, ["file_name", "image_id"]) == []
    assert single_values(shard_set, ["size", "height"]) == [
        "--slices size: every image has the same value, 200x160, so no part is scored apart",
        "--slices height: every image has the same value, 160, so no part is scored apart",
    ]


def fewer(detections: Mapping[int, Detections]) -> dict[int, Detections]:
    """Without the last detection of each image, and with the labels of `OTHER`."""
    return {
        id_: Detections(its.boxes_N4[:-1], its.scores_N[:-1], 2 - its.labels_N[:-1])
        for id_, its in detections.items()
    }


def compare(
    shard_set: ShardSet,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: ClassMatch,
    found: Mapping[int, Detections],
) -> list[str]:
    sets = iter([judged_set()[1], found])
    monkeypatch.setattr(compare_packages, "detect_set", lambda *_, **__: next(sets))
    monkeypatch.setattr(compare_packages, "read_package", lambda folder: {})
    one = Candidate("/package", "models:/cells/3", CLASSES)
    other = Candidate("/other", "models:/cells/4", second)
    return compare_packages.compare_packages(one, other, shard_set, str(folder))


OTHER = ClassMatch(NAMES[::-1], (2, 1, 0))
"""A model with the classes in another order."""


def test_a_comparison_has_the_numbers_of_both_and_their_difference(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truths, (_, detections) = read_truths(shard_set), judged_set()
    lines = compare(shard_set, tmp_path, monkeypatch, OTHER, fewer(detections))
    mended = {
        id_: replace(its, labels_N=2 - its.labels_N) for id_, its in fewer(detections).items()
    }
    first, second = (coco_table(truths, its, NAMES) for its in (detections, mended))
    stored: dict[str, Any] = json.loads((tmp_path / "comparison.json").read_text())
    for name, pair in stored["numbers"].items():
        if name in first.summary:
            assert (pair["first"], pair["second"]) == (first.summary[name], second.summary[name])
    ap = stored["numbers"]["AP"]
    assert ap["difference"] == pytest.approx(ap["second"] - ap["first"], abs=1e-12)
    assert ap["low"] <= ap["difference"] <= ap["high"] and ap["difference"] != 0
    cell = stored["per_class"]["cell"]["AP"]
    assert cell["second"] == second.per_class["cell"]["AP"] and "low" in cell
    page = (tmp_path / "comparison.html").read_text()
    assert len(page) < 3_000_000 and "<script" not in page
    assert f"<td>{ap['first']:.3f}</td><td>{ap['second']:.3f}</td>" in page
    assert "Where A is better" in page and '<figure class="judged">' in page
    assert lines[1].startswith(f"  AP         {ap['first']:>7.4f} {ap['second']:>7.4f}  second is")


def test_the_same_detector_twice_differs_in_nothing(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(shard_set, tmp_path, monkeypatch, CLASSES, judged_set()[1])
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert all(pair.get("difference", 0) == 0 for pair in stored["numbers"].values())
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("There is none.") == 2 and ">better<" not in page


def test_detectors_of_different_classes_are_not_compared(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ClassMatch((*NAMES, "virus"), (0, 1, 2))
    with pytest.raises(UsageError, match="have different classes, such as 'virus'"):
        compare(shard_set, tmp_path, monkeypatch, other, {})


def test_a_detector_that_finds_nothing_and_a_single_image_have_a_page_too(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    truths = read_truths(shard_set)
    table = evaluate.evaluate_detections({}, truths, NAMES, [evaluate.coco])
    source = Source("models:/cells/3", shard_set.uri, shard_set.digest)
    judged = judge(truths, {}, NAMES, resamples=5)
    write_report_files(judged, table, shard_set, CLASSES, str(tmp_path), source=source)
    page = (tmp_path / "report.html").read_text()
    assert "No detection above its threshold disagrees" in page and "No other picture" in page
    assert json.loads((tmp_path / "suspects.json").read_text())["annotations"] == []
    alone = judge(truths[:1], {}, NAMES)
    assert alone.intervals is None and alone.images.missed_I.tolist() == [len(truths[0].labels_N)]
