"""Samples of one canvas become tensors of fixed shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from detector.augment import training_sample
from detector.batch import _SLOT_STEP, Sample, collate, empty_canvases, unmirrored


def sample(objects: int, image_id: int, *, value: int = 0) -> Sample:
    boxes = np.arange(4 * objects, dtype=np.float32).reshape(objects, 4)
    return Sample(
        torch.full((3, 32, 64), value, dtype=torch.uint8),
        boxes,
        np.arange(objects),
        (30, 60 - image_id),
        image_id,
    )


def test_collate_by_hand():
    batch = collate([sample(2, 5, value=7), sample(0, 6, value=8), sample(3, 9, value=9)])
    assert batch.images.shape == (3, 3, 32, 64) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images[:, 0, 0, 0].tolist() == [7, 8, 9]
    assert batch.image_ids.tolist() == [5, 6, 9]
    assert batch.sizes_B2.tolist() == [[30, 55], [30, 54], [30, 51]]
    assert batch.labels_BG[0, :3].tolist() == [0, 1, -1] and batch.labels_BG[2, :4].tolist() == [
        0,
        1,
        2,
        -1,
    ]
    assert batch.boxes_BG4[2, 2].tolist() == [8, 9, 10, 11]
    assert (batch.labels_BG[1] == -1).all() and (batch.boxes_BG4[1] == 0).all()
    assert (batch.labels_BG.dtype, batch.boxes_BG4.dtype, batch.image_ids.dtype) == (
        torch.int64,
        torch.float32,
        torch.int64,
    )


def test_pictures_that_lie_in_the_batch_already_are_not_copied():
    one, two = sample(1, 5, value=7), sample(0, 6, value=8)
    images = empty_canvases(3, (32, 64))
    images[0] = one.image
    drawn = replace(one, image=images[0])
    # A filler shows what lies elsewhere in the batch; another is not there at all.
    batch = collate([drawn, two, replace(drawn, image_id=-1)], images=images)
    expected = collate([one, two, replace(one, image_id=-1)])
    assert batch.images.data_ptr() == images.data_ptr()
    for name in batch.__dataclass_fields__:
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert batch.images.is_contiguous(memory_format=torch.channels_last) and batch.images[
        :, 0, 0, 0
    ].tolist() == [7, 8, 7]
    # Where it lies there, nothing looks at it again.
    images[0] = 9
    assert collate([drawn], images=images[:1]).images[0, 0, 0, 0] == 9


@pytest.mark.parametrize(("most", "slots"), [(0, 16), (1, 16), (16, 16), (17, 32), (40, 48)])
def test_slots_come_in_steps(most, slots):
    assert _SLOT_STEP == 16
    assert collate([sample(most, 1)]).boxes_BG4.shape == (1, slots, 4)
    assert collate([sample(most, 1), sample(0, 2)]).labels_BG.shape == (2, slots)


def test_a_filler_is_one_ignore_region_and_has_no_objects():
    batch = collate([sample(3, -1), sample(1, 4)])
    assert (batch.labels_BG[0] == -1).all()
    x1, y1, x2, y2 = batch.boxes_BG4[0, 0].tolist()
    assert x1 < 0 and y1 < 0 and x2 > 64 and y2 > 32
    assert (batch.boxes_BG4[0, 1:] == 0).all()
    assert batch.labels_BG[1, 0] == 0


def test_to_moves_every_field_and_keeps_the_layout():
    batch = collate([sample(2, 5)])
    moved = batch.to("cpu")
    for name in ("images", "boxes_BG4", "labels_BG", "sizes_B2", "image_ids"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    assert moved.images.is_contiguous(memory_format=torch.channels_last)


def test_boxes_and_labels_that_would_break_the_loss_are_refused():
    good = sample(3, 4)
    collate([good], classes=3)
    collate([Sample(good.image, good.boxes_N4, np.array([-1, 0, 2]), good.size, 4)], classes=3)
    with pytest.raises(
        ValueError,
        match=(
            r"labels of image_id 4, 2: must be within 0..1, or -1 for an ignore region; prepare the"
            r" data set again"
        ),
    ):
        collate([sample(2, 3), good], classes=2)
    broken = Sample(good.image, good.boxes_N4 * np.float32("nan"), good.labels_N, good.size, 4)
    with pytest.raises(
        ValueError, match=r"boxes of image_id 4, \[nan, .*coordinates must be finite"
    ):
        collate([sample(2, 3), broken])


@pytest.mark.parametrize("canvas", [(48, 64), (64, 48), (40, 40)])
def test_pictures_flipped_on_the_device_are_those_flipped_before(canvas):
    random = np.random.default_rng(3)
    pictures = [
        random.integers(0, 256, size, np.uint8) for size in ((30, 60, 3), (60, 31, 3), (96, 128, 3))
    ]
    settings = dict(canvas=canvas, flip=0.5, vertical_flip=0.5, scale_max=1.5, photometric=0.5)

    def batch_of(**later):
        box, label = np.array([[3, 4, 20, 25]], np.float32), np.array([0])
        drawn = [
            (picture, box, label, number, np.random.default_rng(number))
            for number, picture in enumerate(pictures * 4)
        ]
        return collate(
            [
                training_sample(*what, generator=generator, **settings, **later)
                for *what, generator in drawn
            ]
        )

    before, later = batch_of(), batch_of(mirror_later=True)
    # By chance some of these twelve are flipped and some are not; those pixels differ until they
    # are.
    assert 0 < later.mirrored_B.sum() < 12 and not before.mirrored_B.any()
    assert [torch.equal(*pair) for pair in zip(before.images, later.images, strict=True)] == (
        ~later.mirrored_B
    ).tolist()
    done = unmirrored(later)
    for name in before.__dataclass_fields__:
        assert torch.equal(getattr(done, name), getattr(before, name)), name
    assert done.images.is_contiguous(memory_format=torch.channels_last)
