"""Rows of encoded pictures become rows of detections, in each picture's own frame; what is wrong
with one is told in its row alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster.scoring.actors import FOUND, Scorer
from cluster.scoring.evaluate_package import set_max_detections
from detector.batch import Batch
from detector.decode import Detections
from detector.predict import MODEL_FILE, Predictor, read_json, rescale, write_package

BOX = (200, 120, 560, 480)
"""XYXY px of what is red in the pictures of 600 x 800 (height x width) px."""


class Reds(Predictor):
    """Finds what is red."""

    def detect(self, batch: Batch, original_sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        found = []
        for image, size, original in zip(
            batch.images.int(), batch.sizes_B2.tolist(), original_sizes, strict=True
        ):
            ys, xs = np.nonzero((image[0] - image[2] > 60).numpy())
            box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
            found.append(
                rescale(
                    Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64)),
                    tuple(size),
                    original,
                )
            )
        return found


@pytest.fixture
def scorer() -> Scorer:
    scorer = Scorer.__new__(Scorer)
    scorer.predictor = Reds(
        None, canvases=[(96, 128), (128, 96)], decode={}, amp=False, batch_size=3
    )
    scorer.names = ["red"]
    return scorer


def picture(kind: str = "JPEG", *, orientation: int = 1) -> bytes:
    upright = np.zeros((600, 800, 3), np.uint8)
    upright[..., 2] = 200
    upright[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (255, 0, 0)
    # As a camera stores it so that the viewer's turn makes it upright.
    stored = {
        1: upright,
        3: upright[::-1, ::-1],
        6: np.rot90(upright, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(sink, kind, exif=exif)
    return sink.getvalue()


def test_every_row_keeps_its_place_and_a_damaged_picture_costs_itself(scorer):
    whole = picture()
    images = [whole, whole[:-300], b"", picture("PNG"), b"GIF, or not", whole, whole[:40], whole]
    given = ["cannot be read: gone" if i == 5 else None for i in range(8)]
    table = pa.table(
        {
            "uri": [f"{i}.jpg" for i in range(8)],
            "image": pa.array(images, pa.binary()),
            "error": pa.array(given, pa.string()),
        }
    )
    rows = scorer(table).to_pylist()
    assert [row["uri"] for row in rows] == [f"{i}.jpg" for i in range(8)] and set(rows[0]) == {
        "uri",
        *FOUND.names,
    }
    good = [i for i, row in enumerate(rows) if row["status"] == "ok"]
    assert good == [0, 3, 7]
    for i in good:
        assert (rows[i]["height"], rows[i]["width"], rows[i]["names"], rows[i]["error"]) == (
            600,
            800,
            ["red"],
            None,
        )
        np.testing.assert_allclose(rows[i]["boxes"], [BOX], atol=800 / 128)
    assert rows[0]["boxes"] == rows[7]["boxes"]
    said = {i: row["error"] for i, row in enumerate(rows) if i not in good}
    assert said[5] == "cannot be read: gone" and "empty" in said[2] and "truncated" in said[1]
    assert all("it cannot be decoded" in said[i] for i in (1, 4, 6))
    assert all(
        (row["status"], row["boxes"], row["height"]) == ("error", [], None)
        for i, row in enumerate(rows)
        if i in said
    )


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_photo_is_found_in_its_upright_frame(scorer, orientation):
    (row,) = scorer(
        pa.table({"image": pa.array([picture(orientation=orientation)], pa.binary())})
    ).to_pylist()
    assert (row["status"], row["height"], row["width"]) == ("ok", 600, 800)
    np.testing.assert_allclose(row["boxes"], [BOX], atol=800 / 128)


def test_a_table_of_damaged_pictures_alone(scorer):
    rows = scorer(pa.table({"image": pa.array([b"", b"no"], pa.binary())})).to_pylist()
    assert [row["status"] for row in rows] == ["error"] * 2


def test_an_evaluation_may_keep_more_detections_than_the_package_says(tmp_path):
    (tmp_path / "weights").write_bytes(b"")
    description = {"decode": {"max_detections": 100, "nms_threshold": 0.5}, "amp": False}
    write_package(
        str(tmp_path / "package"),
        weights=str(tmp_path / "weights"),
        description=description,
        classes=[],
    )
    set_max_detections(str(tmp_path / "package"), 300)
    expected = {"decode": {"max_detections": 300, "nms_threshold": 0.5}, "amp": False}
    assert read_json(str(tmp_path / "package"), MODEL_FILE) == expected
