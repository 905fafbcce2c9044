"""Detections of views become those of the picture: every object once, also at the seams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detector.choices import ViewSettings
from detector.decode import DecodeSettings, Detections
from detector.merge import PictureMerger, is_cut, merge_flipped, merge_views
from detector.tiling import View, views_of

LIMITS = {"nms_threshold": 0.5, "max_detections": 100}
# Tiles of 100 px at 0, 75 and 150 down and across, which share 25 px.
SIDE, SETTINGS = 250, ViewSettings(tile=100, overlap=0.25)
VIEWS = views_of(SIDE, SIDE, SETTINGS)
Row = tuple[tuple[float, float, float, float], float, int]
"""A box XYXY px, its score and label."""


def detections(*rows: Row) -> Detections:
    return Detections(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([label for _, _, label in rows], np.int64),
    )


def rows_of(found: Detections) -> list[Row]:
    columns = (found.boxes_N4.tolist(), found.scores_N.tolist(), found.labels_N.tolist())
    return [(tuple(box), round(s, 6), label) for box, s, label in zip(*columns, strict=True)]


def seen(objects: Sequence[Row], view: View, *, least: float = 0.2) -> Detections:
    """What a perfect network detects in a view: the visible part of every object, if it is at least
    the share `least` of it. A part has the better score.
    """
    (top, left), (height, width) = view.corner, view.size
    rows: list[Row] = []
    for (x1, y1, x2, y2), score, label in objects:
        part = (
            max(x1 - left, 0.0),
            max(y1 - top, 0.0),
            min(x2 - left, width),
            min(y2 - top, height),
        )
        sides = max(part[2] - part[0], 0), max(part[3] - part[1], 0)
        share = sides[0] * sides[1] / ((x2 - x1) * (y2 - y1))
        if share >= least:
            rows.append((part, score if share == 1 else score + 0.2, label))
    return detections(*sorted(rows, key=lambda row: -row[1]))


def merged(objects: Sequence[Row], views: Sequence[View]) -> list[Row]:
    return rows_of(merge_views([(view, seen(objects, view)) for view in views], **LIMITS))


@st.composite
def objects(draw: st.DrawFn, largest: int) -> list[Row]:
    """Objects in whole px that do not overlap within a class, at least 6 px from each other."""
    rows: list[Row] = []
    for number in range(draw(st.integers(1, 6))):
        width, height = (draw(st.integers(4, largest)) for _ in range(2))
        x, y = draw(st.integers(0, SIDE - width)), draw(st.integers(0, SIDE - height))
        label = draw(st.integers(0, 1))
        box = (float(x), float(y), float(x + width), float(y + height))
        for (a, b, c, d), _, other in rows:
            apart = box[0] >= c + 6 or a >= box[2] + 6 or box[1] >= d + 6 or b >= box[3] + 6
            assume(other != label or apart)
        rows.append((box, 0.5 + 0.03125 * number, label))
    return rows


def boxes(rows: Sequence[Row]) -> list[tuple[tuple[float, ...], int]]:
    return sorted((box, label) for box, _, label in rows)


@settings(deadline=None)
@given(objects(largest=25))
def test_an_object_no_larger_than_the_overlap_is_found_once(given_objects: list[Row]) -> None:
    """Also where the whole picture shows nothing."""
    assert boxes(merged(given_objects, VIEWS[1:])) == boxes(given_objects)


@settings(deadline=None)
@given(objects(largest=240))
def test_an_object_of_any_size_is_found_once_with_the_whole_picture(
    given_objects: list[Row],
) -> None:
    assert boxes(merged(given_objects, VIEWS)) == boxes(given_objects)


def test_an_object_that_no_view_sees_whole_is_kept_once() -> None:
    # Of x 60..125 the tiles at 0, 75 and 150 show 40, 50 and none; 25 px are in both. The first
    # tile has the better score.
    parts = [
        (VIEWS[1], detections(((60, 10, 100, 30), 0.9, 0))),
        (VIEWS[2], detections(((0, 10, 50, 30), 0.8, 0), ((0, 10, 50, 30), 0.7, 1))),
    ]
    # 25 x 20 px are 0.625 of the smaller part. The other class stays.
    assert rows_of(merge_views(parts, **LIMITS)) == [
        ((60, 10, 100, 30), 0.9, 0),
        ((75, 10, 125, 30), 0.7, 1),
    ]
    # Dropped where the whole picture has it, at whatever score.
    whole = (VIEWS[0], detections(((60, 10, 125, 30), 0.1, 0)))
    assert rows_of(merge_views([whole, *parts], **LIMITS)) == [
        ((75, 10, 125, 30), 0.7, 1),
        ((60, 10, 125, 30), 0.1, 0),
    ]


def test_neighbours_in_one_tile_stay_two() -> None:
    """One behind the other at a seam: the network has both in one view, so they are two objects."""
    both = detections(((40, 10, 95, 60), 0.9, 0), ((70, 10, 100, 50), 0.8, 0))
    assert len(rows_of(merge_views([(VIEWS[1], both), (VIEWS[2], detections())], **LIMITS))) == 2
    two_cut = detections(((60, 10, 100, 60), 0.9, 0), ((80, 10, 100, 40), 0.8, 0))
    assert len(rows_of(merge_views([(VIEWS[1], two_cut), (VIEWS[2], detections())], **LIMITS))) == 2


def test_borders_of_the_picture_do_not_cut() -> None:
    corner, middle, opposite = VIEWS[1], VIEWS[5], VIEWS[9]
    assert (corner.corner, middle.corner, opposite.corner) == ((0, 0), (75, 75), (150, 150))
    boxes_N4 = np.array(
        [[0, 0, 20, 20], [80, 80, 100, 100], [79, 40, 99, 60], [40, 40, 60, 60], [0, 40, 100, 60]],
        np.float32,
    )
    assert is_cut(boxes_N4, corner).tolist() == [False, True, True, False, True]
    assert is_cut(boxes_N4, middle).tolist() == [True, True, True, False, True]
    assert is_cut(boxes_N4, opposite).tolist() == [True, False, False, False, True]
    assert not is_cut(boxes_N4, VIEWS[0]).any()
    # 4 px of 96 are near, 2 px of 20 are not.
    assert is_cut(np.array([[0, 0, 96, 9], [78, 0, 98, 9]], np.float32), corner).tolist() == [
        True,
        False,
    ]


def test_the_order_of_the_views_does_not_matter() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 200, (40, 2))
    given_objects: list[Row] = [
        ((x, y, x + w, y + h), 0.5, label)
        for (x, y), (w, h), label in zip(
            corners.tolist(),
            random.uniform(5, 50, (40, 2)).tolist(),
            random.integers(0, 3, 40).tolist(),
            strict=True,
        )
    ]
    parts = [(view, seen(given_objects, view)) for view in VIEWS]
    expected = rows_of(merge_views(parts, **LIMITS))
    for seed in range(3):
        shuffled = [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))]
        assert rows_of(merge_views(shuffled, **LIMITS)) == expected
    best = merge_views(parts, nms_threshold=0.5, max_detections=7)
    assert rows_of(best) == expected[:7] and len(expected) > 7
    assert list(best.scores_N) == sorted(best.scores_N, reverse=True)


def test_one_view_is_returned_as_it_is() -> None:
    odd = detections(((0, 0, 9, 9), 0.1, 0), ((0, 0, 9, 9), 0.9, 0))
    assert merge_views([(VIEWS[0], odd)], **LIMITS) is odd


def test_nothing_in_any_view() -> None:
    found = merge_views([(view, detections()) for view in VIEWS], **LIMITS)
    assert found.boxes_N4.shape == (0, 4) and found.labels_N.dtype == np.int64
    assert rows_of(merge_flipped(detections(), detections(), 9.0, **LIMITS)) == []


def test_mirrored_boxes_are_turned_back_and_found_once() -> None:
    plain = detections(((10, 0, 30, 9), 0.6, 0), ((50, 0, 60, 9), 0.5, 0))
    mirrored = detections(
        ((70, 0, 90, 9), 0.7, 0), ((70, 0, 90, 9), 0.4, 1), ((0, 0, 5, 9), 0.3, 0)
    )
    # In 100 px: 70..90 mirrored are 10..30.
    assert rows_of(merge_flipped(plain, mirrored, 100.0, **LIMITS)) == [
        ((10, 0, 30, 9), 0.7, 0),
        ((50, 0, 60, 9), 0.5, 0),
        ((10, 0, 30, 9), 0.4, 1),
        ((95, 0, 100, 9), 0.3, 0),
    ]
    assert mirrored.boxes_N4[0].tolist() == [70, 0, 90, 9]


def test_pictures_are_complete_with_their_last_view() -> None:
    decode = DecodeSettings(score_threshold=0.05, top_per_level=10, **LIMITS)
    merger = PictureMerger(decode, torch.device("cpu"))
    one = detections(((10, 10, 30, 30), 0.5, 0))
    # The views of two pictures come mixed, the whole ones last.
    assert merger.add([1] * 8 + [2] * 9, VIEWS[1:9] + VIEWS[1:], [detections()] * 17) == {}
    done = merger.add([2, 1], [VIEWS[0], VIEWS[9]], [one, detections()])
    assert {i: rows_of(found) for i, found in done.items()} == {2: rows_of(one)}
    assert rows_of(merger.add([1], [VIEWS[0]], [one])[1]) == rows_of(one)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_the_threshold_is_that_of_the_model(threshold: float) -> None:
    # 0..20 and 8..28 of the same height: IoU 12 / 28 = 0.43.
    parts = [
        (VIEWS[0], detections(((20, 20, 40, 40), 0.9, 0))),
        (VIEWS[1], detections(((28, 20, 48, 40), 0.8, 0))),
    ]
    found = merge_views(parts, nms_threshold=threshold, max_detections=9)
    assert len(found.scores_N) == (1 if threshold < 0.43 else 2)
