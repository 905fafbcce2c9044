"""The splits of a folder are those that its names say."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.formats.splits import find_splits, split_of
from tests.cluster.formats.test_layout import COCO, LABEL, ONE_SET, SEVERAL, VOC, write
from tests.support import parquet_sets


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/_annotations.coco.json", "train"),
        ("valid/labels", "val"),
        ("labels/val", "val"),
        ("annotations/instances_train2017.json", "train"),
        ("annotations/instances_Validation.json", "val"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("obj_test_data", "test"),
        ("training/dev/labels", "val"),
        ("annotations/instances_default.json", None),
        ("trains/valves/latest.json", None),
    ],
)
def test_a_name_says_its_split(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize("name", ["export", "export.zip"])
@pytest.mark.parametrize("tool", SEVERAL)
def test_the_splits_of_an_export(tmp_path: Path, tool: str, name: str) -> None:
    names, parts = SEVERAL[tool]
    root = write(names, tmp_path / name)
    found = find_splits(root)
    assert len(found.train) == len(found.val) == 1
    assert split_of(found.train[0].annotations[len(root) :]) == "train"
    assert split_of(found.val[0].annotations[len(root) :]) == "val"
    said = "\n".join(found.lines)
    assert said.startswith("train ") and "\nval " in said
    assert ("not used" in said) == ("(for `evaluate`" in said) == any("test" in p for p in parts)


@pytest.mark.parametrize("tool", ONE_SET)
def test_a_set_alone_is_for_training(tmp_path: Path, tool: str) -> None:
    names, (format_, annotations, _) = ONE_SET[tool]
    root = write(names, tmp_path / "export")
    found = find_splits(root)
    assert [(one.format, one.annotations) for one in found.train] == [
        (format_, f"{root}/{annotations}")
    ]
    assert found.val == () and len(found.lines) == 1


def test_pictures_may_lie_in_one_folder_for_all_splits(tmp_path: Path) -> None:
    files = {f"annotations/instances_{split}.json": COCO for split in ("train", "val")}
    root = write({**files, "images/a.jpg": ""}, tmp_path / "cells")
    found = find_splits(root)
    assert [one.images for one in (*found.train, *found.val)] == [f"{root}/images"] * 2


def test_the_parquet_files_of_a_split_are_its_sources(tmp_path: Path) -> None:
    names = ["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-0"]
    for number, name in enumerate(names):
        parquet_sets.write(
            tmp_path / f"pets/data/{name}.parquet", [parquet_sets.row(number, (1, 2, 30, 40))]
        )
    found = find_splits(f"{tmp_path}/pets")
    assert [Path(one.annotations).stem for one in found.train] == names[:2]
    assert [Path(one.annotations).stem for one in found.val] == names[2:3]
    assert {one.images for one in found.train} == {None}
    assert found.lines[-1].startswith("not used    data/test-0.parquet")


def test_sets_without_a_split_in_their_names_are_refused(tmp_path: Path) -> None:
    root = write({f"{s}/{n}": COCO for s in "ab" for n in ("x.json", "a.jpg")}, tmp_path / "two")
    with pytest.raises(UsageError, match=r"holds 2 sets, and none has train in its name \(a/x"):
        find_splits(root)
    both = {"train/x.json": COCO, "train/a.xml": VOC, "train/a.jpg": "", "valid/a.txt": LABEL}
    root = write({**both, "valid/a.jpg": ""}, tmp_path / "both")
    with pytest.raises(UsageError, match=r"its train has .* several formats \(coco, voc\)"):
        find_splits(root)
