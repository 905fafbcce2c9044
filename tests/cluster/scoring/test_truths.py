from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster.scoring.truths import read_truths
from cluster.shards.classes import ClassMatch, match_classes
from cluster.shards.format import Category
from tests.support.shard_sets import row, write_set


def test_a_set_with_its_classes_in_another_order_has_the_same_truths(tmp_path: Path) -> None:
    rows = [row(n, boxes=n) for n in range(5)]
    straight = write_set(str(tmp_path / "straight"), [rows])
    turned = write_set(
        str(tmp_path / "turned"),
        [[replace(each, labels_N=[1 - label for label in each.labels_N]) for each in rows]],
        categories=(Category(0, 18, "dog"), Category(1, 3, "cat")),
    )
    classes = match_classes(
        turned.class_names, straight.class_names, subject="turned", of="straight", remedy=""
    )
    for mine, theirs in zip(read_truths(straight), read_truths(turned, classes), strict=True):
        for name, value in vars(mine).items():
            np.testing.assert_array_equal(value, getattr(theirs, name))


def test_objects_of_a_class_that_is_left_out_are_no_truths(tmp_path: Path) -> None:
    shard_set = write_set(str(tmp_path), [[row(4, boxes=4)]])
    (truth,) = read_truths(shard_set, ClassMatch(("dog",), (-1, 0)))
    (whole,) = read_truths(shard_set)
    # Every second object is a dog.
    np.testing.assert_array_equal(truth.boxes_N4, whole.boxes_N4[1::2])
    assert truth.labels_N.tolist() == [0, 0]
    assert len(truth.crowd_N) == len(truth.area_N) == 2
