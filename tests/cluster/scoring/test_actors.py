"""Rows of encoded images become rows of detections, in the frame of each image; an error of one
image stays in its row.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster.scoring.actors import SCORED, TableScorer
from detector.batch import Batch
from detector.decode import Detections
from detector.predict import Predictor, rescale

BOX = (200, 120, 560, 480)
"""XYXY px of what is red in the pictures of 600 x 800 (height x width) px."""


class Reds(Predictor):
    """Detects the red area."""

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
def scorer() -> TableScorer:
    predictor = Reds(None, canvases=[(96, 128), (128, 96)], decode={}, amp=False, batch_size=3)
    return TableScorer(predictor, ["red"])


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


def test_every_row_stays_in_place_and_a_damaged_image_is_an_error_of_its_row(scorer):
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
        *SCORED.names,
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
def test_detections_of_a_rotated_photo_are_in_its_upright_frame(scorer, orientation):
    (row,) = scorer(
        pa.table({"image": pa.array([picture(orientation=orientation)], pa.binary())})
    ).to_pylist()
    assert (row["status"], row["height"], row["width"]) == ("ok", 600, 800)
    np.testing.assert_allclose(row["boxes"], [BOX], atol=800 / 128)


def test_a_table_with_damaged_images_only(scorer):
    rows = scorer(pa.table({"image": pa.array([b"", b"no"], pa.binary())})).to_pylist()
    assert [row["status"] for row in rows] == ["error"] * 2
