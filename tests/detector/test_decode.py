"""From logits to detections: torchvision's post-processing as the oracle, and each rule by hand."""

from __future__ import annotations

import functools
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet

from detector import decode
from detector.anchors import anchor_grid
from detector.boxes import iou
from detector.decode import Detections, _best_of_each, decode_detections

CLASSES = 3
LEVELS = anchor_grid(
    64,
    96,
    base_sizes=(8, 16, 32, 64, 128),
    scales=(1.0, 1.5),
    ratios=(0.5, 1.0, 2.0),
    convention="torchvision",
)
ANCHORS = sum(len(level) for level in LEVELS)


def random_outputs(
    seed: int, images: int, *, shift: float = -2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = shift + 1.5 * torch.randn((images, ANCHORS, CLASSES), generator=generator)
    return logits, 0.3 * torch.randn((images, ANCHORS, 4), generator=generator)


def outputs_of(
    entries: list[tuple[int, int, float]], images: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are hopeless but for (anchor, class, probability) of the first image, and offsets
    of zero: every box is its anchor.
    """
    logits, deltas = torch.full((images, ANCHORS, CLASSES), -20.0), torch.zeros(images, ANCHORS, 4)
    for anchor, label, probability in entries:
        logits[0, anchor, label] = torch.logit(torch.tensor(probability))
    return logits, deltas


def canvas(images: int = 1) -> torch.Tensor:
    return torch.tensor([[64.0, 96.0]] * images)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "settings",
    [
        dict(score_threshold=0.05, top_per_level=1000, nms_threshold=0.5, max_detections=100),
        dict(score_threshold=0.3, top_per_level=40, nms_threshold=0.3, max_detections=10),
    ],
)
def test_same_detections_as_torchvision(seed, settings):
    logits, deltas = random_outputs(seed, 3)
    sizes = torch.tensor([[64.0, 96.0], [50.0, 96.0], [64.0, 61.0]])
    ours = decode_detections(logits, deltas, LEVELS, sizes, **settings)
    names = dict(
        score_thresh="score_threshold",
        topk_candidates="top_per_level",
        nms_thresh="nms_threshold",
        detections_per_img="max_detections",
    )
    stand_in = SimpleNamespace(
        box_coder=BoxCoder((1.0, 1.0, 1.0, 1.0)),
        **{theirs: settings[name] for theirs, name in names.items()},
    )
    counts = [len(level) for level in LEVELS]
    outputs = {
        "cls_logits": list(logits.split(counts, 1)),
        "bbox_regression": list(deltas.split(counts, 1)),
    }
    shapes = [(int(height), int(width)) for height, width in sizes]
    theirs = TorchvisionRetinaNet.postprocess_detections(stand_in, outputs, [LEVELS] * 3, shapes)
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine.scores_N) == len(other["scores"]) > 5
        np.testing.assert_allclose(mine.scores_N, other["scores"], atol=1e-6)
        np.testing.assert_array_equal(mine.labels_N, other["labels"])
        np.testing.assert_allclose(mine.boxes_N4, other["boxes"], atol=1e-3)


def test_sorted_cut_to_the_picture_and_no_more_than_asked():
    logits, deltas = random_outputs(9, 2, shift=0.0)
    sizes = torch.tensor([[64.0, 96.0], [30.0, 40.0]])
    for found, (height, width) in zip(
        decode_detections(logits, deltas, LEVELS, sizes, max_detections=20),
        sizes.tolist(),
        strict=True,
    ):
        assert len(found.scores_N) == 20
        assert (np.diff(found.scores_N) <= 0).all() and (found.scores_N > 0.05).all()
        assert found.boxes_N4.min() >= 0
        assert (
            found.boxes_N4[:, [0, 2]].max() <= width and found.boxes_N4[:, [1, 3]].max() <= height
        )
        assert (
            found.boxes_N4.dtype == found.scores_N.dtype == np.float32
            and found.labels_N.dtype == np.int64
        )


# Boxes on a canvas of 64 x 96 in eighths of a pixel and logits in eighths: overlaps and scores are
# exact, ties are common.
CANDIDATE = st.tuples(
    st.integers(0, 400),
    st.integers(0, 200),
    st.integers(8, 368),
    st.integers(8, 312),
    st.integers(0, CLASSES - 1),
    st.integers(-16, 32),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(CANDIDATE, min_size=1, max_size=12), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_keeps_a_sorted_subset_and_changes_nothing_twice(candidates, threshold):
    boxes = torch.tensor(
        [[x / 8, y / 8, (x + w) / 8, (y + h) / 8] for x, y, w, h, _, _ in candidates]
    )
    labels, levels = [c[4] for c in candidates], [c[5] / 8 for c in candidates]
    (found,) = suppress(boxes, labels, levels, threshold)
    # Six digits: a vector's last entries may be computed by another kernel than the rest, and equal
    # logits then differ in the last bit of the score.
    score_of = {level: round(float(torch.tensor(level).sigmoid()), 6) for level in levels}
    everything = {
        (*box, label, score_of[level])
        for box, label, level in zip(boxes.tolist(), labels, levels, strict=True)
    }
    kept = list(
        zip(
            *found.boxes_N4.T.tolist(),
            found.labels_N.tolist(),
            [round(score, 6) for score in found.scores_N.tolist()],
            strict=True,
        )
    )
    assert set(kept) <= everything
    assert (np.diff(found.scores_N) <= 0).all()
    # No two that stay are doubles of each other, and what is gone is the double of one that is at
    # least as good.
    double = functools.partial(overlapping, threshold=threshold)
    assert not [pair for pair in itertools.combinations(kept, 2) if double(*pair)]
    assert all(
        any(double(lost, other) and other[5] >= lost[5] for other in kept)
        for lost in everything - set(kept)
    )
    logit_of = {score: level for level, score in score_of.items()}
    (again,) = suppress(
        torch.from_numpy(found.boxes_N4),
        found.labels_N.tolist(),
        [logit_of[score] for *_, score in kept],
        threshold,
    )
    np.testing.assert_array_equal(again.boxes_N4, found.boxes_N4)
    np.testing.assert_allclose(again.scores_N, found.scores_N, rtol=1e-6)
    np.testing.assert_array_equal(again.labels_N, found.labels_N)


def overlapping(one: tuple, other: tuple, *, threshold: float) -> bool:
    """Whether two detections (x1, y1, x2, y2, label, score) are of one class and share more than
    `threshold`.
    """
    return (
        one[4] == other[4]
        and float(iou(torch.tensor([one[:4]]).double(), torch.tensor([other[:4]]).double()))
        > threshold
    )


def suppress(
    boxes_N4: torch.Tensor, labels: list[int], levels: list[float], threshold: float
) -> list[Detections]:
    """Each box as an anchor of its own with one class that has any chance."""
    logits = torch.full((1, len(boxes_N4), CLASSES), -20.0)
    logits[0, range(len(labels)), labels] = torch.tensor(levels)
    return decode_detections(
        logits, torch.zeros(1, len(boxes_N4), 4), [boxes_N4], canvas(), nms_threshold=threshold
    )


def test_nms_is_within_a_class():
    # Anchors 1 and 0 of position (4, 4) of P3: sizes 12 and 8 of ratio 0.5. Widths 12 / sqrt(0.5) =
    # 16.97 and 11.3, heights 8.5 and 5.7, rounded to half extents 8 x 4 and 6 x 3: IoU (12 * 6) /
    # (16 * 8) = 72 / 128 = 0.5625 > 0.5.
    first = (4 * 12 + 4) * 6
    logits, deltas = outputs_of([(first, 0, 0.9), (first + 1, 0, 0.8), (first + 1, 2, 0.7)])
    (found,) = decode_detections(logits, deltas, LEVELS, canvas())
    # The second of class 0 is suppressed; the same box of class 2 is nobody's double. Centre (32,
    # 32).
    assert found.labels_N.tolist() == [0, 2]
    np.testing.assert_allclose(found.scores_N, [0.9, 0.7], atol=1e-5)
    np.testing.assert_array_equal(found.boxes_N4, [[26, 29, 38, 35], [24, 28, 40, 36]])
    # At a threshold above 0.5625 all three stay.
    (all_three,) = decode_detections(logits, deltas, LEVELS, canvas(), nms_threshold=0.6)
    assert all_three.labels_N.tolist() == [0, 0, 2]


def test_images_of_a_batch_do_not_suppress_each_other():
    logits, deltas = outputs_of([(300, 1, 0.9)], images=2)
    logits[1] = logits[0]
    both = decode_detections(logits, deltas, LEVELS, canvas(2))
    assert [found.labels_N.tolist() for found in both] == [[1], [1]]


def test_no_candidates_gives_empty_arrays():
    logits, deltas = outputs_of([], images=2)
    for found in decode_detections(logits, deltas, LEVELS, canvas(2)):
        assert (
            found.boxes_N4.shape == (0, 4)
            and found.scores_N.shape == (0,)
            and found.labels_N.shape == (0,)
        )


def test_the_threshold_itself_is_not_passed():
    logits, deltas = torch.full((1, ANCHORS, CLASSES), -20.0), torch.zeros(1, ANCHORS, 4)
    # sigmoid(0) = 0.5 exactly; the next representable logit up is above it.
    logits[0, 10, 0], logits[0, 400, 1] = 0.0, 1e-3
    (found,) = decode_detections(logits, deltas, LEVELS, canvas(), score_threshold=0.5)
    assert found.labels_N.tolist() == [1]


@pytest.mark.parametrize("threshold", [0.0008, 0.0014, 0.0019, 0.05, 0.5])
def test_what_passes_is_decided_by_scores_and_not_by_logits(threshold):
    # Logits around that of the threshold, a few float32 steps apart: of three of these thresholds
    # the logit itself, rounded, has a score above the threshold.
    logit = torch.tensor(math.log(threshold / (1 - threshold)), dtype=torch.float32)
    near = [logit]
    for end in (-torch.inf, torch.inf):
        near.append(torch.nextafter(logit, torch.tensor(end)))
        near.append(torch.nextafter(near[-1], torch.tensor(end)))
    logits, deltas = torch.full((1, ANCHORS, CLASSES), -20.0), torch.zeros(1, ANCHORS, 4)
    for number, value in enumerate(near):
        logits[0, 100 * number, 0] = value
    (found,) = decode_detections(
        logits, deltas, LEVELS, canvas(), score_threshold=threshold, nms_threshold=0.99
    )
    assert len(found.scores_N) == int((logits.sigmoid() > threshold).sum())


def test_a_threshold_of_zero_passes_every_score():
    logits, deltas = outputs_of([(10, 0, 0.9)])
    (found,) = decode_detections(
        logits, deltas, LEVELS, canvas(), score_threshold=0.0, nms_threshold=0.99
    )
    # sigmoid(-20) = 2e-9 is above 0: the one good candidate is followed by 99 hopeless ones.
    assert len(found.scores_N) == 100
    assert found.scores_N[0] == pytest.approx(0.9) and 0 < found.scores_N[1] < 1e-8


def test_each_level_keeps_its_best_candidates():
    # Levels of 96 * 6 = 576 anchors on P3 and 24 * 6 = 144 on P4. One candidate a level: the best
    # of P3 and the best of P4, though P3 has two better ones.
    logits, deltas = outputs_of([(5, 0, 0.9), (300, 0, 0.8), (570, 0, 0.7), (576 + 77, 0, 0.6)])
    (found,) = decode_detections(logits, deltas, LEVELS, canvas(), top_per_level=1)
    np.testing.assert_allclose(found.scores_N, [0.9, 0.6], atol=1e-5)


def test_equal_scores_come_in_the_order_of_the_anchors():
    # The smallest anchor of ratio 1 (index 2 of 6 a position), 8 px, at each second position of a
    # canvas of 512 x 512: 32 x 32 = 1,024 boxes that do not overlap. Above 1,000 torchvision's
    # batched NMS works class by class, and then has no order of its own.
    levels = anchor_grid(
        512, 512, base_sizes=(8, 16, 32, 64, 128), scales=(1.0, 1.5), ratios=(0.5, 1.0, 2.0)
    )
    logits = torch.full((1, sum(len(level) for level in levels), 2), -20.0)
    for row in range(0, 64, 2):
        for column in range(0, 64, 2):
            logits[0, (row * 64 + column) * 6 + 2, column // 2 % 2] = 1.0
    deltas, sizes = torch.zeros(*logits.shape[:2], 4), torch.tensor([[512.0, 512]])
    (found,) = decode_detections(
        logits, deltas, levels, sizes, top_per_level=2000, max_detections=1024
    )
    lefts, tops = found.boxes_N4[:, 0], found.boxes_N4[:, 1]
    assert len(lefts) == 1024
    # Centres go through the canvas row by row.
    assert (np.lexsort((lefts, tops)) == np.arange(1024)).all()


def test_overlap_near_the_threshold_is_decided_alike_anywhere():
    # Anchors 0 and 2 of a position, half extents 6 x 3 and 4 x 4, share 8 x 6 = 48 of 72 + 64 - 48
    # = 88: the threshold itself. One is made wider and narrower by a few millionths, so that every
    # digit counts. Class 700 of image 15 must not lie so far off that the digits are gone.
    first = (4 * 12 + 4) * 6
    levels = [LEVELS[0][first : first + 3]]
    kept = []
    for step in range(-6, 7):
        logits, deltas = torch.full((16, 3, 800), -20.0), torch.zeros(16, 3, 4)
        deltas[:, 0, 2] = step * 1e-6
        for image, label in ((0, 0), (15, 700)):
            logits[image, 0, label], logits[image, 2, label] = 2.0, 1.0
        found = decode_detections(logits, deltas, levels, canvas(16), nms_threshold=48 / 88)
        assert len(found[0].scores_N) == len(found[15].scores_N), step
        kept.append(len(found[0].scores_N))
    # The narrower the first, the larger its overlap's share: suppressed on one side, kept on the
    # other.
    assert kept[0] == 1 and kept[-1] == 2


def test_an_image_has_the_same_detections_in_any_batch():
    logits, deltas = random_outputs(3, 6)
    together = decode_detections(logits, deltas, LEVELS, canvas(6))
    for i in (0, 5):
        (alone,) = decode_detections(logits[i : i + 1], deltas[i : i + 1], LEVELS, canvas())
        np.testing.assert_array_equal(alone.boxes_N4, together[i].boxes_N4)
        np.testing.assert_array_equal(alone.scores_N, together[i].scores_N)
        np.testing.assert_array_equal(alone.labels_N, together[i].labels_N)


def test_bfloat16_logits_are_scored_in_float32():
    logits, deltas = random_outputs(1, 1)
    (half,) = decode_detections(logits.bfloat16(), deltas.bfloat16(), LEVELS, canvas())
    (full,) = decode_detections(
        logits.bfloat16().float(), deltas.bfloat16().float(), LEVELS, canvas()
    )
    np.testing.assert_array_equal(half.scores_N, full.scores_N)
    np.testing.assert_array_equal(half.boxes_N4, full.boxes_N4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=30), st.integers(1, 6))
def test_the_best_of_each_image_in_order(pairs, most):
    images, scores = (
        torch.tensor(column, dtype=torch.int64)
        for column in (zip(*pairs, strict=True) if pairs else ((), ()))
    )
    best, counts = _best_of_each(images, scores.float(), groups=4, most=most)
    expected = [
        sorted(
            (i for i, pair in enumerate(pairs) if pair[0] == image), key=lambda i: (-pairs[i][1], i)
        )[:most]
        for image in range(4)
    ]
    assert best.tolist() == [i for its in expected for i in its] and counts.tolist() == [
        len(its) for its in expected
    ]


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.sampled_from([1, 200, 1 << 26]),
)
@settings(max_examples=80, deadline=None)
def test_parallel_nms_equals_sequential_nms(seed, counts, threshold, pairs):
    """Whole numbers of px and of eighths of a score: overlaps at the threshold and ties are common.
    Boxes without area are among them.
    """
    random = np.random.default_rng(seed)
    total = sum(counts)
    corners = random.integers(0, 30, (total, 2))
    boxes = torch.from_numpy(
        np.concatenate([corners, corners + random.integers(0, 20, (total, 2))], axis=1)
    ).float()
    scores, labels = (
        torch.from_numpy(random.integers(0, 8, total) / 8).float(),
        torch.from_numpy(random.integers(0, 2, total)),
    )
    images = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    given = dict(images=len(counts), classes=2, threshold=threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "_PAIRS_AT_ONCE", pairs)
        found = decode._suppress_at_once(boxes, scores, labels, images, **given)
    assert found.tolist() == sorted(
        decode._suppress(boxes, scores, labels, images, **given).tolist()
    )


def test_classes_at_opposite_corners_do_not_suppress_each_other():
    # The first ends at 96 px in x and y, the second begins at 0: moved apart by a px less than 96,
    # the class of the second would lie on the first.
    boxes = torch.tensor([[95.0, 95, 96, 96], [0, 0, 1, 1]])
    labels, images = torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64)
    given = dict(images=1, classes=2, threshold=0.5)
    for suppress_of in (decode._suppress, decode._suppress_at_once):
        found = suppress_of(boxes, torch.tensor([0.9, 0.8]), labels, images, **given)
        assert sorted(found.tolist()) == [0, 1]


def test_a_long_chain_of_suppression_is_followed_to_its_end():
    # Each overlaps the next alone by more than a half, so every second one stays.
    left = torch.arange(60) * 3.0
    boxes = torch.stack([left, torch.zeros(60), left + 10, torch.full((60,), 10.0)], dim=1)
    zeros = torch.zeros(60, dtype=torch.int64)
    kept = decode._suppress_at_once(
        boxes, torch.linspace(1, 0.1, 60), zeros, zeros, images=1, classes=1, threshold=0.5
    )
    assert kept.tolist() == list(range(0, 60, 2))
