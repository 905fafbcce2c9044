"""A search finds anchors that fit better by the exact rule, and says what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import DataError, UsageError
from cluster.reports.anchor_fit import View, best_iou_of_objects
from cluster.shards.statistics import Annotations
from detector.image_config import CanvasConfig
from detector.model_config import AnchorConfig
from tests.support.box_sets import annotations, centred, coco_like, write_annotations
from tune import anchors as search_module
from tune.anchor_tasks import over_ray
from tune.anchors import AnchorSearch, search_anchors

CANVAS = CanvasConfig(height=480, width=640)
FINE = AnchorConfig(strides=(8,), base_sizes=(32.0,), scales=(1.0,), ratios=(1.0,))
"""One level, one anchor a position."""


def search(
    folder: Path, objects: Annotations, given: AnchorConfig = FINE, **changed: Any
) -> AnchorSearch:
    shard_set = write_annotations(str(folder / "set"), objects)
    return search_anchors(
        shard_set=shard_set,
        canvas=CANVAS,
        anchors=given,
        **{"candidates": 400, "confirm": 2, **changed},
    )


def exact_recall(objects: Annotations, anchors: AnchorConfig) -> float:
    return float((best_iou_of_objects(objects, View(CANVAS, anchors)) >= 0.5).mean())


def anywhere(count: int, width: float, height: float) -> Annotations:
    """Boxes of one shape, anywhere in pictures of 640 x 480 px."""
    lowest, highest = np.array([width, height]) / 2, [640 - width / 2, 480 - height / 2]
    centres = np.random.default_rng(1).uniform(lowest, highest, (count, 2))
    return annotations(centred(centres, width, height))


@pytest.mark.parametrize(("width", "height"), [(240, 24), (13, 13)], ids=["wide", "tiny"])
def test_objects_that_the_given_anchors_miss_are_found(
    width: float, height: float, tmp_path: Path
) -> None:
    objects = anywhere(600, width, height)
    found = search(tmp_path, objects, AnchorConfig())
    before, after = (
        exact_recall(objects, AnchorConfig()),
        exact_recall(objects, found.best.anchors),
    )
    assert before < 0.4 and after > before + 0.4
    # What the search says is what the rule gives.
    assert found.given.whole.recall == pytest.approx(before)
    assert found.best.whole.recall == pytest.approx(after)
    assert found.given.anchors == AnchorConfig() and found.given in found.confirmed


def test_anchors_that_fit_are_kept(tmp_path: Path) -> None:
    # Every object is an anchor of a position: the worth is 1, and one anchor is the least.
    columns, rows = np.meshgrid(np.arange(5, 70), np.arange(5, 50))
    centres = 8 * np.stack([columns.ravel(), rows.ravel()], axis=1)
    found = search(tmp_path, annotations(centred(centres, 32, 32)))
    assert found.best == found.given and found.best.whole.mean_worth == 1
    assert found.best.anchors == FINE


def test_the_best_is_the_best_of_all_that_were_confirmed(tmp_path: Path) -> None:
    found = search(tmp_path, annotations(coco_like(4000)), price=0.004)
    scores = [candidate.score(found.price) for candidate in found.confirmed]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    assert found.best == found.confirmed[0]
    assert scores[0] == pytest.approx(found.best.whole.mean_worth - 0.004 * found.best.per_position)
    # 400 at most, in whole generations of 30.
    assert found.tried == 390 and len(found.sample) == 3000


def test_anchors_have_their_price(tmp_path: Path) -> None:
    objects = annotations(coco_like(2000))
    counts = [
        search(tmp_path / f"{price}", objects, AnchorConfig(), price=price).best.per_position
        for price in (0.0, 0.5)
    ]
    # The worth is at most 1, so a second anchor cannot bring 0.5 where the first brings some.
    assert counts[0] > 9 > counts[1] == 1


def test_shapes_alone_mislead(tmp_path: Path) -> None:
    # Objects of 100 x 6 px. Rows of positions are 8 px apart, so an object is up to 4 px off. An
    # anchor of its own shape that is d px off shares 6 - d of 6 + d rows: IoU 0.5 up to d = 2, the
    # half of all objects. One of 100 x 9 shares 7.5 - d of 7.5 + d: up to 2.5, five eighths.
    objects = anywhere(1500, 100, 6)
    shaped = FINE.model_copy(update={"base_sizes": (600**0.5,), "ratios": (0.06,)})
    assert exact_recall(objects, shaped) == pytest.approx(0.5, abs=0.04)
    found = search(tmp_path, objects, shaped, price=0.5, candidates=1000).best
    assert found.per_position == 1
    assert exact_recall(objects, found.anchors) > exact_recall(objects, shaped) + 0.05
    # Its own shape fits worse: by shapes alone it would have lost.
    (size,), (ratio,) = found.anchors.base_sizes, found.anchors.ratios
    width, height = size / ratio**0.5, size * ratio**0.5
    assert height > 7 and min(width, 100) * 6 < 0.9 * width * height


def test_the_same_seed_gives_the_same_result_however_it_is_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "PART", 500)
    asked: list[int] = []

    def last_first(function: Callable[[Any], Any], parts: Sequence[Any], /) -> list[Any]:
        asked.extend(len(part) for part in parts)
        return [function(part) for part in parts[::-1]][::-1]

    objects = annotations(coco_like(2000))
    run = partial(search, tmp_path, objects, scale_range=(0.8, 1.25), candidates=200)
    first = run()
    assert run(spread=last_first) == first
    assert max(asked) == 500 and sum(asked) == sum(first.given.whole.objects)
    assert run(seed=1) != first


def test_ray_tasks_give_the_same_result(ray_cluster: object, tmp_path: Path) -> None:
    objects = annotations(coco_like(500))
    run = partial(search, tmp_path, objects, candidates=100, confirm=1)
    assert run(spread=over_ray) == run()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"price": -0.1}, "price -0.1: must not be below 0"),
        ({"candidates": 50}, "candidates 50: must be at least 100"),
        ({"confirm": 0}, "confirm 0: must be at least 1"),
        ({"background": 0.6}, "background 0.6 and foreground 0.5: must be"),
        ({"background": 0.0}, "background 0 and foreground 0.5: must be"),
    ],
)
def test_a_wrong_argument_is_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        search(tmp_path, anywhere(10, 32, 32), **changed)


def test_a_set_without_objects_is_named(tmp_path: Path) -> None:
    crowds = anywhere(10, 32, 32)
    crowds.crowd_N[:] = True
    with pytest.raises(DataError, match="set: none of its 1 images has an object"):
        search(tmp_path, crowds)


def test_objects_that_are_lost_on_the_canvas_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of its 10 objects has sides of 1 px on the canvas"):
        search(tmp_path, anywhere(10, 0.5, 0.5))
