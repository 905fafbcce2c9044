"""What the driver gets of the first batches: the pixels and boxes that the network got."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.runs.events import BatchSeen, Event, TrainingWarning
from cluster.training import first_batches
from cluster.training.first_batches import BATCHES, MOST_PICTURES, SIDE, FirstBatches
from detector.batch import Batch, Sample, collate


def batch(count: int, *, canvas: tuple[int, int] = (64, 96), fillers: int = 0) -> Batch:
    """Grey pictures; number n has n objects and an ignore region."""
    samples = []
    for number in range(count):
        image = torch.full((3, *canvas), 20 * number, dtype=torch.uint8)
        boxes = np.array([[8.0, 16.0, 40.0, 48.0]] * (number + 1), np.float32)
        labels = np.array([1] * number + [-1])
        image_id = -1 if number >= count - fillers else 100 + number
        samples.append(Sample(image, boxes, labels, canvas, image_id))
    return collate(samples)


def told_of(*batches: tuple[Batch, int], wanted: bool = True) -> list[Event]:
    told: list[Event] = []
    first = FirstBatches(tell=told.append, wanted=wanted)
    for each, number in batches:
        first(each, number)
        first.wait()
    return told


def test_the_first_batches_are_told_with_their_objects() -> None:
    assert BATCHES == 2
    given = batch(4, fillers=1)
    first, second = told_of(*((given, number) for number in range(5)))
    assert isinstance(first, BatchSeen) and isinstance(second, BatchSeen)
    assert (first.number, second.number) == (0, 1)
    assert first.canvas == (64, 96)
    # The fourth is a filler.
    assert [picture.image_id for picture in first.pictures] == [100, 101, 102]
    for number, picture in enumerate(first.pictures):
        pixels = np.asarray(Image.open(io.BytesIO(picture.jpeg)))
        assert pixels.shape == (64, 96, 3) and np.abs(pixels.astype(int) - 20 * number).max() < 3
        # Padding of the ground truth is left out, the ignore region is not.
        assert picture.labels_N.tolist() == [1] * number + [-1]
        assert picture.boxes_N4.tolist() == [[8.0, 16.0, 40.0, 48.0]] * (number + 1)


def test_a_run_that_is_resumed_later_tells_nothing_again() -> None:
    assert told_of((batch(1), BATCHES), (batch(1), BATCHES + 1)) == []


def test_nothing_is_told_where_nobody_draws() -> None:
    assert told_of((batch(1), 0), wanted=False) == []


def test_large_canvases_and_batches_are_told_in_part_and_small() -> None:
    (event,) = told_of((batch(MOST_PICTURES + 3, canvas=(2 * SIDE, SIDE)), 0))
    assert isinstance(event, BatchSeen) and len(event.pictures) == MOST_PICTURES
    picture = event.pictures[0]
    assert Image.open(io.BytesIO(picture.jpeg)).size == (SIDE // 2, SIDE)
    # Half as large, as the picture.
    assert picture.boxes_N4.tolist() == [[4.0, 8.0, 20.0, 24.0]]


def test_a_batch_that_cannot_be_shown_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Batch) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(first_batches, "batch_pictures", fails)
    (warning,) = told_of((replace(batch(1)), 0))
    assert warning == TrainingWarning(
        "batch 0 cannot be shown, training continues: OSError: no memory"
    )
