"""The flat annotations against the rows they come from, and what the sample pictures show."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from cluster.shards import index, verify, write
from cluster.shards import statistics as survey
from cluster.shards.format import Category, Row, shard_name
from cluster.shards.index import ShardSet
from cluster.shards.statistics import Annotations
from cluster.storage import files
from cluster.storage.uris import join
from detector.placement import fit_scale, place_picture

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
    return index.write_index(
        uri, categories=CATEGORIES, shards=written, counts={}, source_digest=""
    )


def test_flat_is_the_rows_in_order(tmp_path):
    opened = write_set(
        str(tmp_path),
        [row(7, (0, 8, False), (1, 40, True)), row(3), row(5, (1, 100, False), height=90)],
        [row(1, (0, 96, False))],
    )
    found = survey.read(opened)
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
    assert [survey.SIZES[size] for size in found.size_N] == ["small", "medium", "large", "large"]
    objects = found.objects()
    assert (
        objects.image_N.tolist() == [0, 2, 3]
        and objects.area_N.tolist() == [64, 10_000, 9216]
        and len(objects.heights_I) == 4
    )


def test_a_set_without_boxes(tmp_path):
    found = survey.read(write_set(str(tmp_path), [row(1), row(2)]))
    assert found.boxes_N4.shape == (0, 4) and found.size_N.shape == found.image_N.shape == (0,)
    assert survey.choose_samples(found, [2], count=5) == [0, 1]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([(64, 96), (128, 64)]))
def test_boxes_are_where_the_network_sees_them(height, width, canvas):
    _, (new_height, new_width), (y, x) = place_picture(
        np.zeros((height, width, 3), np.uint8),
        canvas=canvas,
        scale=fit_scale(height, width, canvas),
    )
    ours = survey.canvas_factors(np.array([height]), np.array([width]), canvas=canvas)
    assert ours.tolist() == [[y, x]]
    whole = Annotations(
        np.array([height]),
        np.array([width]),
        np.array([0]),
        np.array([[0, 0, width, height]], np.float32),
        *[np.zeros(1, int)] * 3,
    )
    assert np.allclose(
        survey.boxes_on_canvas(whole, canvas=canvas), [[0, 0, new_width, new_height]]
    )


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
    chosen = survey.choose_samples(everything, groups, count=count)
    assert (
        chosen == sorted(set(chosen))
        and len(chosen) == min(count, len(images))
        and max(chosen) < len(images)
    )
    read = {image // group_rows for image in chosen}
    # No more groups than the four that show most, or than the number of pictures asks for.
    assert len(read) <= max(survey.SAMPLE_GROUPS, -(-count // group_rows) + 1)
    # The first picture shows something, if anything is to be seen.
    assert not flat or any(images[image] for image in chosen)


def test_rare_classes_are_shown(tmp_path):
    # 200 images in groups of 10; cats everywhere, one dog in image 137, one large cat in image 42,
    # thirty cats in every tenth image.
    images = [row(n, *[(0, 10.0, False)] * (30 if n % 10 == 0 else 1)) for n in range(200)]
    images[137], images[42] = row(137, (1, 10.0, False)), row(42, (0, 150.0, False))
    opened = write_set(str(tmp_path), images, row_group_rows=10)
    shown = [one["image_id"] for one in survey.read_samples(opened, survey.read(opened), count=3)]
    assert 137 in shown and 42 in shown
    # The third is one where the cat can be seen, not the picture with thirty of them.
    assert len(shown) == 3 and all(image % 10 for image in shown)


def test_samples_come_with_their_pixels(tmp_path):
    opened = write_set(
        str(tmp_path),
        [row(1, (0, 10.0, False)), row(2), row(3, (1, 50.0, False))],
        [row(4, (1, 10.0, True))],
    )
    found = list(survey.read_samples(opened, survey.read(opened), count=3))
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


def test_a_damaged_or_missing_shard_is_named(tmp_path):
    opened = write_set(str(tmp_path), [row(1, (0, 10.0, False))])
    everything = survey.read(opened)
    path = tmp_path / opened.shards[0].name
    for damage, words in (
        (lambda: path.write_bytes(b"PAR1 nothing of the kind PAR1"), "is damaged"),
        (path.unlink, "not in the folder"),
    ):
        damage()
        with pytest.raises(DataError, match="shard-00000-of-00001.parquet: is "):
            list(survey.read_samples(opened, everything, count=1))
        with pytest.raises(DataError, match=f"shard-00000-of-00001.parquet: .*{words}"):
            survey.read(opened)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_verify_names_every_changed_and_missing_shard(where, tmp_path, request):
    root = str(tmp_path) if where == "local" else request.getfixturevalue("bucket")
    opened = write_set(root, *[[row(n, (0, 8, False))] for n in range(5)])
    said: list[str] = []
    verify.verify_shard_set(opened, say=said.append)
    assert said == []
    names = [shard.name for shard in opened.shards]
    files.delete_file(join(root, names[0]))
    # One bit turned; the last byte cut off.
    data = bytearray(files.read_bytes(join(root, names[1])))
    data[6] ^= 1
    files.write_bytes(join(root, names[1]), bytes(data))
    files.write_bytes(join(root, names[3]), files.read_bytes(join(root, names[3]))[:-1])
    words = (
        rf"3 of 5 shards are not as index.json has them: {names[0]}, {names[1]}, {names[3]}; run"
        r" prepare with --overwrite true"
    )
    with pytest.raises(DataError, match=words):
        verify.verify_shard_set(opened, say=said.append)
    found = hashlib.sha256(data).hexdigest()
    assert said[0] == f"{names[0]} is in the index but not in the folder"
    assert (
        said[1] == f"{names[1]} has sha256 {found[:12]}..., the index names"
        f" {opened.shards[1].sha256[:12]}..."
    )
    assert len(said) == 3 and said[2].startswith(f"{names[3]} has sha256")


def test_verify_reads_in_pieces(tmp_path, monkeypatch):
    opened = write_set(str(tmp_path), [row(n, (0, 8, False)) for n in range(9)])
    monkeypatch.setattr(verify, "PIECE_BYTES", 7)
    verify.verify_shard_set(opened)


def test_verify_looks_at_the_index_itself(tmp_path):
    opened = write_set(str(tmp_path), [row(1)])
    with pytest.raises(DataError, match="the set digest does not fit its shards"):
        verify.verify_shard_set(replace(opened, categories=CATEGORIES[:1]))
