"""What is called drift: changes that are large and beyond chance, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from detector.detection_counts import DetectionCounts, count_detections
from detector.drift import CHANCE, LEAST, find_drift

NAMES = ("rbc", "wbc", "platelets")


def drawn(
    images: int,
    *,
    seed: int,
    rates: tuple[float, ...] = (12.0, 1.0, 4.1),
    shift: float = 0.0,
    size: tuple[int, int] = (480, 640),
) -> DetectionCounts:
    """Numbers of detections that vary more than Poisson's, and scores that are alike in an image,
    as those of a detector are.
    """
    rng = np.random.default_rng(seed)
    image, labels, scores = [], [], []
    for number in range(images):
        mood = rng.normal(0, 0.1)
        for label, rate in enumerate(rates):
            count = rng.poisson(rate * rng.gamma(4, 1 / 4))
            image += [number] * count
            labels += [label] * count
            scores += np.clip(rng.normal(0.7 + shift + mood, 0.1, count), 0.05, 1).tolist()
    return count_detections(
        NAMES,
        image_N=np.array(image, np.int64),
        labels_N=np.array(labels, np.int64),
        scores_N=np.array(scores),
        heights_I=np.full(images, size[0]),
        widths_I=np.full(images, size[1]),
    )


VALIDATION = drawn(100, seed=0)


def said(here: DetectionCounts) -> list[str]:
    return [drift.sentence for drift in find_drift(here, VALIDATION)]


@pytest.mark.parametrize("images", [LEAST, 50, 400])
def test_chance_is_not_called_drift(images: int) -> None:
    pages = [find_drift(drawn(images, seed=1 + n), drawn(100, seed=1000 + n)) for n in range(40)]
    # Of 40 pages 0.4 may name something; five or more would have a probability of 6 in 100,000.
    assert sum(bool(page) for page in pages) < 5
    assert pytest.approx(0.01) == CHANCE


def test_a_class_that_is_rarer_is_named_with_both_rates() -> None:
    here = drawn(100, seed=1, rates=(12.0, 1.0, 0.2))
    rate = here.detections_C[2] / 100
    there = VALIDATION.detections_C[2] / 100
    assert said(here) == [
        f"class platelets: {rate:.2g} detections an image, {there:.1f} in validation"
    ]


def test_scores_that_are_lower_are_named_with_both_medians() -> None:
    drifts = find_drift(drawn(100, seed=1, shift=-0.3), VALIDATION)
    assert {drift.row for drift in drifts} == {0, 1, 2, 3}
    sentences = {drift.row: drift.sentence for drift in drifts}
    assert sentences[0].startswith("class rbc: scores are lower: median ")
    # The scores are drawn around 0.4 and 0.7; those of an image lie up to 0.1 beside that.
    medians = [float(word) for word in sentences[0].split() if word[0].isdigit()]
    assert medians == pytest.approx([0.4, 0.7], abs=0.05)


def test_images_of_another_size_are_named() -> None:
    assert said(drawn(30, seed=1, size=(480, 1280))) == [
        "images: median width 1,280 px against 640 px"
    ]


def test_a_change_that_is_certain_but_small_is_not_named() -> None:
    # 1.2 times as many detections, in 5,000 images.
    here, there = (drawn(5000, seed=n, rates=(6.0 * n, 0, 0)) for n in (5, 6))
    assert find_drift(here, there) == []


def test_nothing_is_said_of_few_images_or_of_a_class_in_few_images() -> None:
    assert said(drawn(LEAST - 1, seed=1, rates=(0, 0, 0), size=(9, 9))) == []
    one = drawn(0, seed=0) + drawn(100, seed=1, rates=(12.0, 1.0, 0.1), shift=-0.3)
    assert one.images_C[2] < LEAST
    assert not any("platelets: scores" in sentence for sentence in said(one))


def test_a_class_that_is_always_there_and_now_never_is_named() -> None:
    """Neither side varies."""

    def always(count: int) -> DetectionCounts:
        return count_detections(
            ("cell",),
            image_N=np.repeat(np.arange(30), count),
            labels_N=np.zeros(30 * count, np.int64),
            scores_N=np.full(30 * count, 0.9),
            heights_I=np.full(30, 9),
            widths_I=np.full(30, 9),
        )

    assert [each.sentence for each in find_drift(always(0), always(1))] == [
        "class cell: 0 detections an image, 1.0 in validation"
    ]
    assert find_drift(always(1), always(1)) == []
