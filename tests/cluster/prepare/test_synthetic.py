from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cluster.prepare import synthetic
from detector.image import decode_image


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthetic.make_coco(str(tmp_path / name), train_images=3, val_images=2, seed=seed)
    first = files_of(tmp_path / "a")
    assert len(first) == 3 + 2 + 2
    assert files_of(tmp_path / "b") == first
    assert files_of(tmp_path / "c")["images/train/000000.jpg"] != first["images/train/000000.jpg"]
    assert first["images/train/000000.jpg"] != first["images/val/000000.jpg"]


def test_the_json_describes_the_files(small_coco: Path) -> None:
    for split, total in (("train", 24), ("val", 8)):
        content = json.loads((small_coco / f"annotations/instances_{split}.json").read_text())
        assert [category["id"] for category in content["categories"]] == [1, 3, 7, 18, 44]
        sizes = {}
        for image in content["images"]:
            pixels = decode_image((small_coco / "images" / split / image["file_name"]).read_bytes())
            assert pixels.shape == (image["height"], image["width"], 3)
            sizes[image["id"]] = pixels.shape[:2]
        assert len(sizes) == total
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            assert (
                0 <= x < x + width <= sizes[annotation["image_id"]][1]
                and 0 <= y < y + height <= sizes[annotation["image_id"]][0]
            )
            assert 0 < annotation["area"] <= width * height


def test_variety() -> None:
    drawn = [
        synthetic.draw_image(np.random.default_rng([0, 0, number]))[1] for number in range(150)
    ]
    objects = [
        annotation
        for annotations in drawn
        for annotation in annotations
        if not annotation["iscrowd"]
    ]
    sides = [max(annotation["bbox"][2:]) for annotation in objects]
    assert {annotation["category_id"] for annotation in objects} == set(synthetic.CATEGORIES)
    assert min(sides) < 20 and max(sides) > 110
    assert 2 <= sum(not annotations for annotations in drawn) <= 20
    assert (
        3 <= sum(annotation["iscrowd"] for annotations in drawn for annotation in annotations) <= 25
    )


def test_no_object_is_mostly_hidden_or_inside_a_crowd() -> None:
    rng = np.random.default_rng(3)
    canvas, owner = np.zeros((240, 320, 3), np.float32), np.zeros((240, 320), np.int32)
    crowd = synthetic.draw_crowd(rng, canvas, owner)
    x, y, width, height = crowd["bbox"]
    drawn: list[tuple[int, int]] = []
    for _ in range(40):
        synthetic.draw_object(rng, canvas, owner, drawn)
    assert len(drawn) > 5
    for number, (_, whole) in enumerate(drawn, start=1):
        assert (owner == number).sum() >= 0.4 * whole
    assert (owner[y : y + height, x : x + width] == -1).all()


def test_a_box_is_tight_around_the_visible_pixels() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:8] = True
    mask[2, 3] = False
    # Columns 3..7 and rows 2..4 are touched; 3 * 5 - 1 = 14 pixels.
    assert synthetic.describe(mask, 7, crowd=False) == {
        "category_id": 7,
        "bbox": [3, 2, 5, 3],
        "area": 14,
        "iscrowd": 0,
    }


def test_stamping_cuts_at_the_edges() -> None:
    stencil = np.ones((4, 4), bool)
    corner = synthetic.stamp(stencil, 0, 0, 8, 9)
    # The middle of a side of 4 is its third pixel, so two rows and two columns stay.
    assert corner.sum() == 4 and corner[:2, :2].all()
    assert synthetic.stamp(stencil, 4, 4, 8, 9)[2:6, 2:6].all()
    assert synthetic.stamp(stencil, 8, 7, 8, 9).sum() == 3 * 3


@pytest.mark.parametrize("shape", synthetic.CATEGORIES.values())
def test_shapes_fill_their_side_and_differ(shape: str) -> None:
    stencil = synthetic.draw_stencil(shape, 161, angle=0)
    share = stencil.mean()
    # Of the square around a circle: pi/4 = 0.785 for the disc; the ring leaves pi/4 * 0.46^2 =
    # 0.166 of it out: 0.619. Inscribed: the square has 1/2, the triangle 3 sqrt(3)/16 = 0.325, the
    # star about 0.31 (10 triangles of sin 36 * 0.42 / 8 = 0.0309).
    wanted = {"circle": 0.785, "ring": 0.619, "square": 0.5, "triangle": 0.325, "star": 0.309}[
        shape
    ]
    assert share == pytest.approx(wanted, abs=0.02)
    assert stencil[80, 80] == (shape != "ring")


def test_command_line_refuses_nonsense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        synthetic.main([str(tmp_path), "--train", "0"])
    assert caught.value.code == 2 and "at least 1" in capsys.readouterr().err
    synthetic.main([str(tmp_path), "--train", "1", "--val", "1"])
    assert "1 train and 1 val images of 5 classes" in capsys.readouterr().out


def test_a_picture_that_is_there_already_stays_as_it_is(tmp_path: Path) -> None:
    """What was made of the pictures, such as predictions, is told by their time."""
    synthetic.make_coco(str(tmp_path), train_images=2, val_images=1, seed=0)
    first, second = (tmp_path / f"images/train/00000{number}.jpg" for number in (0, 1))
    for path in (first, second):
        os.utime(path, (1, 1))
    content = second.read_bytes()
    second.write_bytes(b"another")
    synthetic.make_coco(str(tmp_path), train_images=2, val_images=1, seed=0)
    assert first.stat().st_mtime == 1
    assert second.read_bytes() == content and second.stat().st_mtime > 1
