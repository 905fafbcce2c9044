"""The annotation arrays against the rows of the set, and the choice of sample images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from cluster.shards import index, statistics, write
from cluster.shards.format import Category, Row, shard_name
from cluster.shards.index import ShardSet
from cluster.shards.statistics import Annotations
from detector.placement import fit_scale, place_picture, preferred_canvas

CATEGORIES = (Category(0, 3, "cat"), Category(1, 18, "dog"))


def row(
    image_id: int, *objects: tuple[int, float, bool], height: int = 200, width: int = 300
) -> Row:
    """An image with a square object for each (label, side in px, crowd)."""
    boxes = np.array([[1, 2, 1 + side, 2 + side] for _, side, _ in objects], np.float32).reshape(
        -1, 4
    )
    labels, crowds = [label for label, _, _ in objects], [crowd for _, _, crowd in objects]
    return Row(
        image_id,
        f"{image_id}.jpg",
        b"pixels",
        height,
        width,
        boxes,
        labels,
        crowds,
        [side**2 for _, side, _ in objects],
        0,
        bytes(32),
    )


def write_set(uri: str, *parts: list[Row], row_group_rows: int = 2) -> ShardSet:
    written = [
        write.write_shard(uri, shard_name(n, len(parts)), rows, row_group_rows=row_group_rows)
        for n, rows in enumerate(parts)
    ]
    return index.write_index(uri, index.Index(tuple(CATEGORIES), tuple(written)))


def test_annotations_are_the_rows_in_order(tmp_path):
    opened = write_set(
        str(tmp_path),
        [row(7, (0, 8, False), (1, 40, True)), row(3), row(5, (1, 100, False), height=90)],
        [row(1, (0, 96, False))],
    )
    found = statistics.read(opened)
    assert found.image_N.tolist() == [0, 0, 2, 3] and found.labels_N.tolist() == [0, 1, 1, 0]
    assert found.heights_I.tolist() == [200, 200, 90, 200] and found.widths_I.tolist() == [300] * 4
    assert found.boxes_N4.tolist() == [
        [1, 2, 9, 10],
        [1, 2, 41, 42],
        [1, 2, 101, 102],
        [1, 2, 97, 98],
    ]
    assert found.crowd_N.tolist() == [False, True, False, False]
    # COCO's limits are 32^2 and 96^2 px^2; an area of exactly 96^2 is large here.
    assert [statistics.SIZES[size] for size in found.size_N] == [
        "small",
        "medium",
        "large",
        "large",
    ]
    objects = found.objects()
    assert (
        objects.image_N.tolist() == [0, 2, 3]
        and objects.area_N.tolist() == [64, 10_000, 9216]
        and len(objects.heights_I) == 4
    )


def test_a_set_without_boxes(tmp_path):
    found = statistics.read(write_set(str(tmp_path), [row(1), row(2)]))
    assert found.boxes_N4.shape == (0, 4) and found.size_N.shape == found.image_N.shape == (0,)
    assert statistics.choose_samples(found, [2], count=5) == [0, 1]


CANVASES = [(64, 96), (128, 64), (96, 96)]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 900),
    st.integers(1, 900),
    st.lists(st.sampled_from(CANVASES), min_size=1, unique=True),
    st.sampled_from([None, 70]),
)
def test_boxes_on_the_canvas_are_those_of_the_network(height, width, canvases, long_side):
    chosen = preferred_canvas(height, width, canvases, long_side=long_side)
    _, (new_height, new_width), (y, x) = place_picture(
        np.zeros((height, width, 3), np.uint8),
        canvas=canvases[chosen],
        scale=fit_scale(height, width, canvases[chosen], long_side=long_side),
    )
    ours = statistics.place_images(
        np.array([height]), np.array([width]), canvases=canvases, long_side=long_side
    )
    assert (ours.canvas_I.tolist(), ours.factors_I2.tolist()) == ([chosen], [[y, x]])
    whole = Annotations(
        np.array([height]),
        np.array([width]),
        np.array([0]),
        np.array([[0, 0, width, height]], np.float32),
        *[np.zeros(1, int)] * 3,
    )
    assert np.allclose(ours.boxes(whole), [[0, 0, new_width, new_height]])


OBJECT = st.tuples(st.integers(0, 5), st.sampled_from([10.0, 50.0, 150.0]), st.booleans())


@settings(deadline=None, max_examples=60)
@given(
    images=st.lists(st.lists(OBJECT, max_size=6), min_size=1, max_size=40),
    group_rows=st.integers(1, 9),
    count=st.integers(1, 15),
)
def test_samples_are_different_images_of_few_groups(images, group_rows, count):
    counts = [len(objects) for objects in images]
    flat = [one for objects in images for one in objects]
    everything = Annotations(
        heights_I=np.full(len(images), 200),
        widths_I=np.full(len(images), 300),
        image_N=np.repeat(np.arange(len(images)), counts),
        boxes_N4=np.zeros((len(flat), 4), np.float32),
        labels_N=np.array([label for label, _, _ in flat], np.int32),
        crowd_N=np.array([crowd for _, _, crowd in flat], bool),
        area_N=np.array([side**2 for _, side, _ in flat], np.float32),
    )
    groups = [min(group_rows, len(images) - start) for start in range(0, len(images), group_rows)]
    chosen = statistics.choose_samples(everything, groups, count=count)
    assert (
        chosen == sorted(set(chosen))
        and len(chosen) == min(count, len(images))
        and max(chosen) < len(images)
    )
    read = {image // group_rows for image in chosen}
    # At most four groups, or as many as the number of images needs.
    assert len(read) <= max(statistics.SAMPLE_GROUPS, -(-count // group_rows) + 1)
    # A sample shows a box where any image has one.
    assert not flat or any(images[image] for image in chosen)


def test_samples_show_rare_classes(tmp_path):
    # 200 images in groups of 10; cats everywhere, one dog in image 137, one large cat in image 42,
    # thirty cats in every tenth image.
    images = [row(n, *[(0, 10.0, False)] * (30 if n % 10 == 0 else 1)) for n in range(200)]
    images[137], images[42] = row(137, (1, 10.0, False)), row(42, (0, 150.0, False))
    opened = write_set(str(tmp_path), images, row_group_rows=10)
    shown = [
        one["image_id"] for one in statistics.read_samples(opened, statistics.read(opened), count=3)
    ]
    assert 137 in shown and 42 in shown
    # The third is an image of one cat, not one of those with thirty.
    assert len(shown) == 3 and all(image % 10 for image in shown)


def test_samples_have_all_columns(tmp_path):
    opened = write_set(
        str(tmp_path),
        [row(1, (0, 10.0, False)), row(2), row(3, (1, 50.0, False))],
        [row(4, (1, 10.0, True))],
    )
    found = list(statistics.read_samples(opened, statistics.read(opened), count=3))
    assert [(one["image_id"], one["image"]) for one in found] == [
        (1, b"pixels"),
        (3, b"pixels"),
        (4, b"pixels"),
    ]
    assert (
        found[1]["labels"] == [1]
        and found[1]["boxes"] == [[1, 2, 51, 52]]
        and found[2]["crowd"] == [True]
    )


def test_the_error_names_a_damaged_or_missing_shard(tmp_path):
    opened = write_set(str(tmp_path), [row(1, (0, 10.0, False))])
    everything = statistics.read(opened)
    path = tmp_path / opened.shards[0].name
    for damage, words in (
        (lambda: path.write_bytes(b"PAR1 nothing of the kind PAR1"), "is damaged"),
        (path.unlink, "not in the folder"),
    ):
        damage()
        with pytest.raises(DataError, match="shard-00000-of-00001.parquet: is "):
            list(statistics.read_samples(opened, everything, count=1))
        with pytest.raises(DataError, match=f"shard-00000-of-00001.parquet: .*{words}"):
            statistics.read(opened)
