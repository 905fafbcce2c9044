"""summary.json and summary.html: what was found beside what was found in validation."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.prediction import pool, predict
from cluster.prediction.image_list import open_images
from cluster.prediction.samples import Pictures, SampleRows
from cluster.prediction.summary import Summary, Timing, counts_of
from cluster.prediction.summary_page import MOST_CLASSES, NOT_KNOWN, render_page
from cluster.runs.package_files import write_validation
from detector.choices import ViewSettings
from detector.detection_counts import DetectionCounts, count_detections
from detector.drift import RULE
from detector.operating_points import OperatingPoint, Thresholds
from tests.support.predicting import InProcess, write_package, write_pictures

IMAGES = 40
NAMES = ("cell", "x")
Detected = list[tuple[int, float]]
CLAIM = {"package_digest": "abc", "decode": {}, "images": "/i", "max_pixels": 1, "views": {}}


def counted(*images: Detected, names: tuple[str, ...] = NAMES) -> DetectionCounts:
    """Of images of 128 x 96 px with these (label, score)."""
    return counts_of(
        [
            {
                "status": "ok",
                "width": 128,
                "height": 96,
                "labels": [label for label, _ in image],
                "scores": [score for _, score in image],
            }
            for image in images
        ],
        names,
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Predicts on pictures with one cell of score 1 each, after this validation; returns the
    summary and the page.
    """
    monkeypatch.setattr(pool, "run_parts", InProcess())
    write_pictures(tmp_path / "pictures", IMAGES)
    package = write_package(tmp_path / "package")

    def call(validation: DetectionCounts | None, **changes: Any) -> tuple[Summary, str]:
        if validation is not None:
            write_validation(str(package), validation)
        done = predict.predict(
            str(package),
            open_images(str(tmp_path / "pictures")),
            str(tmp_path / "out"),
            model_version="models:/cells/3",
            connect=lambda: None,
            **changes,
        )
        stored = json.loads((tmp_path / "out/summary.json").read_text())
        assert Summary.from_json(stored) == done.summary
        return done.summary, (tmp_path / "out/summary.html").read_text()

    return call


def text_of(page: str) -> str:
    """The words of a page."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("</head>")[2]))


def test_what_was_found_stands_beside_validation_and_drift_is_named(
    run: Callable[..., Any],
) -> None:
    # Two cells with lower scores in each of 30 images.
    summary, page = run(counted(*[[(0, 0.405), (0, 0.505)]] * 30))
    cell, x, together = summary.classes
    assert (cell.name, cell.here.detections, cell.here.images) == ("cell", 40, 40)
    assert (cell.here.detections_an_image, cell.validation.detections_an_image) == (1, 2)
    assert cell.validation.mean_score == pytest.approx(0.455)
    assert cell.drifts and not x.drifts and together.name == "all classes"
    assert x.here.score_quantiles is None and x.here.detections == 0
    assert summary.validation_images == 30
    assert summary.image_sizes.width == {"5 %": 128, "25 %": 128, "median": 128} | {
        "75 %": 128,
        "95 %": 128,
    }
    # Half of the scores of validation lie in the bin from 0.40 to 0.41.
    assert set(summary.drift) == {
        "class cell: 1.0 detections an image, 2.0 in validation",
        "class cell: scores are higher: median 0.99 against 0.41",
        "all classes: 1.0 detections an image, 2.0 in validation",
        "all classes: scores are higher: median 0.99 against 0.41",
    }
    words = text_of(page)
    for sentence in summary.drift:
        assert sentence in words
    for said in ("models:/cells/3", "score threshold 0.05", "images of this command 40"):
        assert said in words
    assert " ".join(RULE.split()) in words.replace("&#39;", "'")
    assert page.count('class="card marked"') == 2 and page.count('class="validation" d="M0 40') == 2


def test_without_drift_the_page_says_so_and_of_few_images_nothing(run: Callable[..., Any]) -> None:
    summary, page = run(counted(*[[(0, 1.0)]] * 30))
    assert summary.drift == [] and not summary.too_few_images
    assert "Nothing differs from validation beyond chance." in page
    summary, page = run(counted(*[[]] * 19), overwrite=True)
    assert summary.drift == [] and summary.too_few_images
    assert "There are too few images to say whether anything drifts." in page


def test_a_package_without_validation_has_a_page_that_says_so(run: Callable[..., Any]) -> None:
    summary, page = run(None)
    assert summary.validation_images is None and summary.drift == []
    assert NOT_KNOWN in page and "<th>validation</th>" not in page
    assert summary.classes[0].here.detections == IMAGES


def test_the_threshold_of_each_class_is_on_the_page(run: Callable[..., Any]) -> None:
    point = OperatingPoint(0.25, 1.0, 1.0, 1.0)
    thresholds = Thresholds(None, 0.5, {"cell": point, "x": None})
    summary, page = run(counted(*[[(0, 1.0)]] * 30), thresholds=thresholds)
    assert summary.drift == [] and "Not compared" in page
    assert "threshold of cell 0.250" in text_of(page)
    assert "threshold of x none, so it is left out" in text_of(page)


def test_tiles_are_named_where_validation_had_none(run: Callable[..., Any]) -> None:
    _, page = run(counted(*[[(0, 1.0)]] * 30), views=ViewSettings(tile=64))
    assert "detected in tiles or mirror images too" in page
    assert "tile 64" in text_of(page)


def test_errors_stand_with_examples_and_what_to_do(run: Callable[..., Any], tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"pictures/broken-<{number}>.png").write_bytes(b"<script>alert(1)</script>")
    summary, page = run(None)
    words = text_of(page)
    assert "7 x not_an_image Take the files out of the folder or the list." in words
    assert "broken-&lt;4&gt;.png and 2 more" in words and "<script" not in page
    assert summary.errors == 7


def noisy(number: int) -> bytes:
    """A picture that JPEG hardly makes smaller."""
    pixels = np.random.default_rng(number).integers(0, 255, (300, 400, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=0)
    return sink.getvalue()


def test_the_largest_page_has_less_than_3_mb_and_fetches_nothing(tmp_path: Path) -> None:
    names = tuple(f"a class with a long name, number {number:04d}" for number in range(1203))
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(noisy(number))
        labels = [] if number % 4 == 0 else rng.integers(0, 1203, 300).tolist()
        rows.append(
            {
                "uri": f"{tmp_path}/{number}.png",
                "status": "ok",
                "width": 400,
                "height": 300,
                "boxes": rng.uniform(0, 300, (len(labels), 4)).tolist(),
                "scores": rng.uniform(0, 1, len(labels)).tolist(),
                "labels": labels,
            }
        )
    samples = SampleRows(len(rows))
    samples.see(rows)
    pictures = samples.pictures(names)
    assert sum(len(group.pictures) for group in pictures.groups) == 24 and not pictures.lost
    counts = counts_of(rows, names)
    summary = Summary("models:/m/1", images=60, ok=60, timing=Timing(9.0, 60, 0, 7.5, 1.5, 4, 2))
    summary.describe(counts, counts, [])
    page = render_page("/out", CLAIM, summary, counts, counts, pictures)
    assert len(page.encode()) < 3e6
    assert page.count('class="card"') == MOST_CLASSES + 1
    assert "The other 1,163 classes" in page
    # Nothing but data URIs, and no script.
    assert not re.search(r"<script|<link|src=|url\(|https?:", page)
    assert set(re.findall(r'href="(.{5})', page)) == {"data:"}


def test_a_page_without_an_image_that_could_be_read(run: Callable[..., Any]) -> None:
    counts = counted()
    summary = Summary("", images=3, errors=3)
    summary.describe(counts, counted([(0, 0.5)]), [])
    page = render_page("/out", CLAIM, summary, counts, counted([(0, 0.5)]), Pictures([], []))
    assert "width in validation" in text_of(page) and "a package in a folder" in page


def test_a_summary_of_an_earlier_version_is_read() -> None:
    old = {
        "model_version": "models:/cells/1",
        "images": 2,
        "ok": 1,
        "errors": 1,
        "first_errors": ["a: b"],
        "errors_by_reason": {"missing": {"count": 1, "examples": ["a"]}},
        "detections_with_image_id": 0,
        "passed_over": {},
        "not_drawn": [],
    }
    summary = Summary.from_json(old)
    assert summary.classes == [] and summary.timing is None
    assert Summary.from_json(summary.to_json()) == summary


def test_parts_of_rows_add_up() -> None:
    images: list[Detected] = [[(0, 0.5)], [], [(1, 0.25), (0, 0.75)]]
    parts = counted(images[0]) + counted(*images[1:])
    assert parts.to_json() == counted(*images).to_json()
    assert (
        counted().to_json()
        == count_detections(
            NAMES,
            **{f"{name}_N": np.empty(0) for name in ("image", "labels", "scores")},
            heights_I=np.empty(0),
            widths_I=np.empty(0),
        ).to_json()
    )
