"""Whatever a set holds and whatever is wrong with it: nothing is lost without being counted, and
every stored box lies around its object.

The expected counts are those of what was painted and damaged, not of what a reader found.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.formats.kinds import Format
from cluster.prepare.plan import Options, plan_shards
from cluster.shards.read import read_columns
from detector.image import decode_image
from tests.support.painted_sets import (
    CELL,
    CLASSES,
    WRITERS,
    Change,
    FileDamage,
    ObjectDamage,
    PaintedImage,
    PaintedObject,
    possible,
    stored_name,
    write_set,
)
from tests.support.preparing import write_here


@st.composite
def painted_images(draw: st.DrawFn, name: str, *, good: bool = False) -> PaintedImage:
    """An image of 2 to 4 cells a side; a `good` one has an object and no damage."""
    rows = draw(st.integers(2, 4))
    columns = draw(st.integers(2, 4).filter(lambda n: n != rows))
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    taken = draw(st.lists(st.sampled_from(cells), unique=True, min_size=int(good), max_size=4))
    objects = []
    for number, (row, column) in enumerate(taken):
        # Even px, so that halves are whole.
        x1, y1 = column * CELL + 2 * draw(st.integers(0, 2)), row * CELL + 2
        x2, y2 = column * CELL + 8, row * CELL + 2 * draw(st.integers(3, 6))
        damage = None if good else draw(st.sampled_from([None, None, *get_args(ObjectDamage)]))
        label = draw(st.integers(0, len(CLASSES) - 1))
        colour = (255, 40 * number + 20, 80 * label)
        objects.append(PaintedObject(label, (x1, y1, x2, y2), colour, damage))
    damage = None if good else draw(st.sampled_from([None, None, *get_args(FileDamage)]))
    change = draw(st.sampled_from([None, *get_args(Change)]))
    return PaintedImage(name, rows, columns, tuple(objects), damage, change)


@st.composite
def painted_sets(draw: st.DrawFn) -> list[PaintedImage]:
    others = draw(
        st.lists(st.sampled_from(["b", "c d", "e.f", "sub/ü"]), unique=True, min_size=1, max_size=4)
    )
    images = [draw(painted_images("a.png", good=True))]
    return images + [draw(painted_images(f"{name}.png")) for name in others]


@pytest.mark.parametrize("format", sorted(WRITERS))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(images=painted_sets())
def test_all_is_stored_or_left_out_and_boxes_lie_around_their_objects(
    format: Format, images: list[PaintedImage]
) -> None:
    images = possible(images, format)
    with tempfile.TemporaryDirectory() as folder:
        everything = {"max_quarantined": 1.0, "max_quarantined_annotations": 1.0}
        plan = plan_shards(
            [write_set(Path(folder), images, format)],
            output=f"{folder}/out",
            options=Options(**everything),
        )
        shard_set = write_here(plan)
        columns = ["file_name", "image", "boxes", "labels"]
        rows = {row["file_name"]: row for row in read_columns(shard_set, columns).to_pylist()}
    _check_counts(shard_set.counts, images, format)
    stored = {
        stored_name(image, number, format): image
        for number, image in enumerate(images)
        if image.damage is None
    }
    assert set(rows) == set(stored)
    for name, image in stored.items():
        pixels_HW3 = decode_image(rows[name]["image"])
        expected = {(one.label, *_extent(pixels_HW3, one.colour)) for one in image.usable}
        found = zip(rows[name]["labels"], rows[name]["boxes"], strict=True)
        assert {(label, *np.round(box, 3)) for label, box in found} == expected


def _check_counts(counts, images: list[PaintedImage], format: Format) -> None:
    whole = [image for image in images if image.damage is None]
    # A YOLO set lists its pictures: one that is missing is a label file without a picture.
    assert counts.listed_images == len(images)
    assert (counts.images, counts.quarantined_images) == (len(whole), len(images) - len(whole))
    objects = sum(len(image.objects) for image in images)
    usable = sum(len(image.usable) for image in whole)
    assert counts.listed_annotations == objects
    assert counts.boxes == usable
    assert counts.quarantined_annotations + counts.lost_annotations == objects - usable


def _extent(pixels_HW3: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The smallest box around the pixels of a colour, XYXY px."""
    y, x = np.nonzero((pixels_HW3 == colour).all(axis=2))
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1
