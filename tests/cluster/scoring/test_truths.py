from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster.scoring.truths import read_truths
from cluster.shards.classes import ClassMatch, match_classes
from cluster.shards.format import Category, Federated
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


def test_what_an_image_was_searched_for_is_in_the_labels_of_the_model(tmp_path: Path) -> None:
    categories = tuple(Category(k, k, name) for k, name in enumerate(("cat", "dog", "owl", "ox")))
    partly = replace(row(1, boxes=1), federated=Federated(absent=(2, 3), incomplete=(0,)))
    shard_set = write_set(str(tmp_path), [[partly, row(2, boxes=1)]], categories=categories)
    own, whole = read_truths(shard_set)
    # The object is a cat, 0.
    assert own.searched is not None and own.searched.tolist() == [0, 2, 3]
    assert own.incomplete is not None and own.incomplete.tolist() == [0]
    assert whole.searched is None and whole.incomplete is None
    # The model knows no ox, and counts from the owl.
    model = ClassMatch(("owl", "dog", "cat"), (2, 1, 0, -1))
    moved, _ = read_truths(shard_set, model)
    assert moved.searched is not None and moved.searched.tolist() == [0, 2]
    assert moved.incomplete is not None and moved.incomplete.tolist() == [2]


def test_objects_of_a_class_that_is_left_out_are_no_truths(tmp_path: Path) -> None:
    shard_set = write_set(str(tmp_path), [[row(4, boxes=4)]])
    (truth,) = read_truths(shard_set, ClassMatch(("dog",), (-1, 0)))
    (whole,) = read_truths(shard_set)
    # Every second object is a dog.
    np.testing.assert_array_equal(truth.boxes_N4, whole.boxes_N4[1::2])
    assert truth.labels_N.tolist() == [0, 0]
    assert len(truth.crowd_N) == len(truth.area_N) == 2
