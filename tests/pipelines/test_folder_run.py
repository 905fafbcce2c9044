"""`run FOLDER`: sets of strangers, as their tools write them, become configurations of a run."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UsageError
from cluster.formats.read import in_val
from cluster.prepare.sample import sample_annotations
from pipelines.command_line import parse
from pipelines.data_section import plan_of
from pipelines.folder_run import name_of, read
from pipelines.run_config import RunConfig
from pipelines.workflow import check
from tests.support import parquet_sets
from tests.support.pictures import jpeg, noise

PICTURE = jpeg(noise(48, 64))
BOX = (8.0, 8.0, 24.0, 32.0)
"""XYXY px, 16 x 24."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def roboflow_zip() -> str:
    """YOLO with data.yaml and the splits of Roboflow."""
    with zipfile.ZipFile("Pets v2.zip", "w") as packed:
        packed.writestr("data.yaml", "names: [cat, dog]\nnc: 2\ntrain: ../train/images\n")
        packed.writestr("README.roboflow.txt", "Pets\n")
        for split, count in (("train", 12), ("valid", 3), ("test", 2)):
            for number in range(count):
                # The centre of BOX, its width and height as shares of 64 x 48 px.
                packed.writestr(f"{split}/labels/{number}.txt", "1 0.25 0.4166667 0.25 0.5\n")
                packed.writestr(f"{split}/images/{number}.jpg", PICTURE)
    return "Pets v2.zip"


def cvat_coco() -> str:
    """COCO 1.0, with the one subset of a task."""
    names = [f"{number}.jpg" for number in range(40)]
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "version": ""},
        "categories": [{"id": 1, "name": "cell", "supercategory": ""}],
        "images": [
            {"id": n, "file_name": name, "width": 64, "height": 48, "license": 0}
            for n, name in enumerate(names, 1)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [8, 8, 16, 24], "area": 384}
            | {"iscrowd": 0, "segmentation": [], "attributes": {"occluded": False}}
            for n in range(1, 41)
        ],
    }
    Path("job_7/annotations").mkdir(parents=True)
    Path("job_7/images/default").mkdir(parents=True)
    Path("job_7/annotations/instances_default.json").write_text(json.dumps(content))
    for name in names:
        Path("job_7/images/default", name).write_bytes(PICTURE)
    return "job_7"


def hugging_face() -> str:
    """The Parquet files of `datasets`, two of them for training."""
    for split, first, count in (("train", 0, 6), ("train", 6, 6), ("validation", 12, 3)):
        rows = [
            parquet_sets.row(number, (8, 8, 16, 24), data=PICTURE, width=64, height=48)
            for number in range(first, first + count)
        ]
        name = f"{split}-{first // 6 % 2:05}-of-{2 if split == 'train' else 1:05}.parquet"
        parquet_sets.write(Path("cppe/data") / name, rows)
    Path("cppe/README.md").write_text("---\ndataset_info: {}\n---\n")
    return "cppe"


SETS = {"Pets-v2": roboflow_zip, "job_7": cvat_coco, "cppe": hugging_face}


@pytest.mark.parametrize("name", SETS)
def test_a_strangers_set_becomes_a_run_that_its_file_repeats(
    name: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SETS[name]()
    config = read([given])
    said = capsys.readouterr().out
    assert config.name == name and f"retinaray run --config runs/{name}.yaml" in said
    assert parse(RunConfig, ["--config", f"runs/{name}.yaml"]) == config
    # 128 x 96 is twice the pictures.
    assert (config.canvas.height, config.canvas.width) == (96, 128)
    assert config.training.batch_size <= 4 and config.model.backbone == "resnet18"
    # The inputs are there and have the same classes; nothing was started.
    assert check(config).sources["train"] != check(config).sources["val"]
    # The same command is the same training, also on a machine that has more.
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert read([given]) == config
    assert "settings    those of runs/" in capsys.readouterr().out
    # So is a plan of it, from which nothing is written.
    plan = read([given, "--plan", "true", "--until_stage", "train"])
    assert plan.plan and plan.model_copy(update={"plan": False, "until_stage": None}) == config


def test_the_splits_and_the_sizes_are_those_of_the_set(capsys: pytest.CaptureFixture) -> None:
    config = read([roboflow_zip()])
    said = capsys.readouterr().out
    assert str(config.data.train.annotations).endswith("Pets v2.zip/train/labels")
    assert str(config.data.val.images).endswith("Pets v2.zip/valid/images")
    assert "pictures    12 for training, 3 for evaluation; 12 boxes of 2 classes" in said
    assert "not used    test/labels (for `evaluate` when all is decided)" in said

    config = read([cvat_coco()])
    said = capsys.readouterr().out
    assert (config.data.train.split, config.data.val.split) == ("train", "val")
    assert config.data.train.annotations == config.data.val.annotations
    assert "val         10% of these pictures" in said

    config = read([hugging_face()])
    said = capsys.readouterr().out
    assert [Path(one.annotations).name[:7] for one in config.data.train.sources] == ["train-0"] * 2
    assert "pictures    12 for training, 3 for evaluation" in said


def test_flags_files_and_variables_win(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cvat_coco()
    Path("mine.yaml").write_text("overlays: 3\ncanvas: {height: 64, width: 96}\n")
    monkeypatch.setenv("RETINARAY_MODEL__WIDTH", "64")
    config = read(["--config", "mine.yaml", folder, "--training.epochs", "2", "--name=cells"])
    assert (config.name, config.overlays, config.model.width) == ("cells", 3, 64)
    assert (config.canvas.height, config.training.epochs) == (64, 2)
    said = capsys.readouterr().out
    assert "canvas 6" not in said and "training.epochs 2: as given" in said
    # Another command begins anew, and what it replaces is kept.
    before = Path("runs/cells.yaml").read_text()
    other = read([folder, "--name", "cells"])
    assert other.training.epochs > 2
    assert Path("runs/cells.before.yaml").read_text() == before
    # What was typed is the first line of the file.
    head = f"# retinaray run {Path.cwd()}/job_7 --name cells\n"
    assert Path("runs/cells.yaml").read_text().startswith(head)


def test_a_plan_writes_nothing() -> None:
    assert read([cvat_coco(), "--plan", "true"]).plan
    assert not Path("runs").exists()


def test_another_set_for_evaluation_may_be_named() -> None:
    train, val = cvat_coco(), hugging_face()
    file = f"{val}/data/validation-00000-of-00001.parquet"
    config = read([train, "--data.val.annotations", file])
    assert (config.data.train.split, config.data.val.annotations) == ("all", file)


def test_minutes_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # A second for an image: an epoch of 36 images takes 36 s, and two minutes have three of them.
    each = [1.0]
    monkeypatch.setattr("cluster.training.step_time.seconds_per_image", lambda *_, **__: each.pop())
    command = [cvat_coco(), "--minutes", "2"]
    epochs = read(command).training.epochs
    count = sum(not in_val(f"{number}.jpg", 0.1) for number in range(40))
    assert epochs == 120 // count
    assert read(command).training.epochs == epochs and not each


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "3"], "--minutes: needs the folder"),
        (["a", "b"], "a and b: one folder is taken"),
        (["a", "--data.train.annotations", "b"], "--data.train.annotations: is given beside"),
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["nowhere", "--trainin.epochs", "3"], "--trainin.epochs is not an option"),
    ],
)
def test_a_mistake_is_told_before_anything_is_looked_at(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(words)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/data/bccd", "bccd"),
        ("s3://bucket/sets/My Pets/", "My-Pets"),
        ("pets.v2i.coco.zip", "pets.v2i.coco"),
        ("../__", "run"),
        ("/data/" + "a" * 200, "a" * 80),
    ],
)
def test_a_run_is_named_like_its_folder(folder: str, name: str) -> None:
    assert name_of(folder.rstrip("/") if folder.startswith("s3") else folder) == name


@pytest.mark.parametrize("name", SETS)
def test_the_sampled_boxes_are_in_px(name: str) -> None:
    sample = sample_annotations(plan_of(read([SETS[name]()]).data.train))
    assert set(zip(sample.heights_I, sample.widths_I, strict=True)) == {(48, 64)}
    np.testing.assert_allclose(sample.boxes_N4, [BOX] * len(sample.boxes_N4), atol=1e-4)
    np.testing.assert_array_equal(sample.image_N, np.arange(len(sample.heights_I)))
