"""The statistics of a small set, counted by hand."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.reports import label_statistics as module
from cluster.reports.label_statistics import draw_label_statistics, label_statistics
from cluster.shards.format import Category
from cluster.shards.index import ShardSet
from tests.support.shard_sets import row, write_set


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    """Images with 0, 1, 2 and 3 boxes; of those with more, the second one is a crowd."""
    return write_set(str(tmp_path), [[row(1, 0), row(2, 1)], [row(3, 2), row(4, 3)]])


def test_objects_are_counted_by_class_size_and_image(shard_set: ShardSet) -> None:
    found = label_statistics(shard_set)
    content = found.to_json()
    assert (content["images"], content["images_in_set"]) == (4, 4)
    # Boxes 0 + 1 + 2 + 3, less two crowds; the odd ones, which are dogs, are the crowds.
    assert (content["objects"], content["crowds"]) == (4, 2)
    assert content["objects_of_class"] == {"cat": 4, "dog": 0}
    assert content["images_without_objects"] == 1
    assert content["objects_per_image"]["0 objects"] == 1
    assert content["objects_per_image"]["1 objects"] == 2
    assert content["objects_per_image"]["2 objects"] == 1
    # All have an area of 2.5 px^2, a side of 1.6 px.
    assert sum(content["object_sizes"].values()) == 4
    assert max(content["object_sizes"], key=content["object_sizes"].get).startswith("1.")


def test_of_a_large_set_every_nth_shard_is_read_and_that_is_said(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BOXES", 5)
    counts = replace(shard_set.counts, boxes=6)
    found = label_statistics(replace(shard_set, index=replace(shard_set.index, counts=counts)))
    # The first of two shards.
    assert (found.images, found.images_in_set, found.objects) == (2, 4, 1)


def test_the_picture_has_a_row_for_each_set(shard_set: ShardSet) -> None:
    found = label_statistics(shard_set)
    one, two = (
        Image.open(io.BytesIO(draw_label_statistics(dict.fromkeys(names, found))))
        for names in (["data.train"], ["data.train", "data.val"])
    )
    assert two.size == (one.size[0], 2 * one.size[1])
    assert len(np.unique(np.asarray(one))) > 50


def test_many_classes_and_strange_names_are_drawn(tmp_path: Path) -> None:
    names = ["$\\frac{", "猫", "_x", *map(str, range(97))]
    categories = tuple(Category(label, label + 1, name) for label, name in enumerate(names))
    empty = write_set(str(tmp_path), [[row(1, 0)]], categories=categories)
    found = label_statistics(empty)
    assert found.objects == 0 and len(found.objects_of_class) == 100
    assert Image.open(io.BytesIO(draw_label_statistics({"data.train": found}))).size
    assert "matplotlib.pyplot" not in sys.modules
