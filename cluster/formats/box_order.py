"""What the four numbers of a box mean, where the file does not say it: all boxes together decide.

Each order is judged by the share of boxes that would not fit: with a negative side, or outside
their picture. COCO's order counts unless another one fits at least `CLEAR` better; one or two
faulty boxes among many decide nothing. Numbers that all lie in 0..1 are shares of the picture.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Order = Literal["xywh", "xyxy", "cxcywh"]
ORDERS: dict[Order, str] = {
    "xywh": "x, y, width, height",
    "xyxy": "x1, y1, x2, y2",
    "cxcywh": "centre x, centre y, width, height",
}
CLEAR = 0.01
MARGIN = 0.01
"""Rounding takes shares of a picture a little over its edge."""


class Decision(NamedTuple):
    """`certain` is whether no other order fits nearly as well."""

    order: Order
    normalised: bool
    certain: bool


def are_shares(boxes_N4: np.ndarray) -> bool:
    """Whether the numbers are shares of the picture: no object has a box of a pixel."""
    return bool(len(boxes_N4)) and bool(
        (boxes_N4 <= 1 + MARGIN).all() and (boxes_N4 >= -MARGIN).all()
    )


def decide_order(boxes_N4: np.ndarray, sides_N2: np.ndarray) -> Decision:
    """`sides_N2` are the width and height of each box's picture in px; 0 where unknown."""
    normalised, margin = are_shares(boxes_N4), 1.0
    sides_N2 = sides_N2.astype(np.float64)
    if normalised:
        sides_N2, margin = np.ones_like(sides_N2), MARGIN
    if (known_N := (sides_N2 > 0).all(axis=1)).any():
        boxes_N4, sides_N2 = boxes_N4[known_N], sides_N2[known_N]
    else:
        sides_N2 = np.full_like(sides_N2, np.inf)
    count = max(1, len(boxes_N4))
    shares = {
        order: misfits(to_xyxy(boxes_N4, order), sides_N2, margin).sum() / count for order in ORDERS
    }
    order: Order = "xywh"
    for other in ORDERS:
        if shares[other] < shares[order] - (CLEAR if order == "xywh" else 0):
            order = other
    others = [share for other, share in shares.items() if other != order]
    return Decision(order, normalised, bool(min(others) > shares[order] + CLEAR))


def to_xyxy(boxes_N4: np.ndarray, order: Order) -> np.ndarray:
    first_N2, last_N2 = boxes_N4[:, :2], boxes_N4[:, 2:]
    if order == "xyxy":
        return boxes_N4
    if order == "cxcywh":
        first_N2 = first_N2 - last_N2 / 2
    return np.concatenate([first_N2, first_N2 + last_N2], axis=1)


def from_xyxy(boxes_N4: np.ndarray, order: Order) -> np.ndarray:
    """The inverse of `to_xyxy`."""
    first_N2, last_N2 = boxes_N4[:, :2], boxes_N4[:, 2:]
    if order == "xyxy":
        return boxes_N4
    if order == "cxcywh":
        return np.concatenate([(first_N2 + last_N2) / 2, last_N2 - first_N2], axis=1)
    return np.concatenate([first_N2, last_N2 - first_N2], axis=1)


def misfits(boxes_N4: np.ndarray, sides_N2: np.ndarray, margin: float) -> np.ndarray:
    """bool (N,): which XYXY boxes have a negative side or leave their picture."""
    first_N2, last_N2 = boxes_N4[:, :2], boxes_N4[:, 2:]
    wrong_N2 = (last_N2 < first_N2) | (first_N2 < -margin) | (last_N2 > sides_N2 + margin)
    return np.asarray(wrong_N2.any(axis=1))
