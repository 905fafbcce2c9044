from __future__ import annotations

import numpy as np
import pytest

from cluster.formats.box_order import ORDERS, Decision, Order, decide_order, to_xyxy

SIZE = (100, 80)


def corners(*, count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Boxes anywhere in a picture, XYXY px."""
    random = np.random.default_rng(0)
    xs = np.sort(random.uniform(0, size[0], (count, 2)))
    ys = np.sort(random.uniform(0, size[1], (count, 2)))
    return np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], axis=1)


def stored(boxes_N4: np.ndarray, order: Order) -> np.ndarray:
    first, last = boxes_N4[:, :2], boxes_N4[:, 2:]
    sides = last - first
    start = {"xywh": first, "cxcywh": first + sides / 2, "xyxy": first}[order]
    return np.concatenate([start, last if order == "xyxy" else sides], axis=1)


def sizes(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.tile(size, (count, 1))


@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("share", [False, True])
def test_boxes_in_pictures_of_known_size_decide(order: Order, share: bool) -> None:
    size = (1, 1) if share else SIZE
    boxes_N4 = corners(count=50, size=size)
    numbers_N4 = stored(boxes_N4, order)
    decision = decide_order(numbers_N4, sizes(50, (0, 0) if share else SIZE))
    assert decision == Decision(order, share, True)
    assert to_xyxy(numbers_N4, order) == pytest.approx(boxes_N4)


def test_one_box_that_leaves_its_picture_as_a_side_but_not_as_a_corner_decides() -> None:
    # 60 + 90 = 150 is beyond 100 px.
    boxes_N4 = np.array([[10, 10, 40, 40], [60, 20, 90, 70]], np.float64)
    assert decide_order(boxes_N4, sizes(2)).order == "xyxy"


def test_few_faulty_boxes_among_many_do_not_decide() -> None:
    # Large objects fit as corners too; one of 200 leaves its picture.
    boxes_N4 = np.tile([5.0, 5.0, 90.0, 70.0], (200, 1))
    boxes_N4[7] = [50, 5, 90, 70]
    assert decide_order(boxes_N4, sizes(200)) == Decision("xywh", False, False)


def test_where_several_fit_cocos_order_counts_and_is_not_certain() -> None:
    boxes_N4 = np.array([[1, 1, 50, 50]], np.float64)
    assert decide_order(boxes_N4, sizes(1, (0, 0))) == Decision("xywh", False, False)
    assert decide_order(np.zeros((0, 4)), np.zeros((0, 2))).order == "xywh"


def test_pictures_of_unknown_size_say_nothing_where_others_are_known() -> None:
    boxes_N4 = np.array([[60, 20, 90, 70], [900, 900, 100, 100]], np.float64)
    assert decide_order(boxes_N4, np.array([SIZE, (0, 0)])).order == "xyxy"
