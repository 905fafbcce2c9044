"""All verbs in one process on the shared Ray cluster: what comes out, and what a second call
reuses.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.shards.index import open_shard_set
from cluster.shards.read import read_columns
from pipelines.command_line import parse, run_verb
from pipelines.folder_run import read
from pipelines.run import main
from pipelines.run_config import RunConfig

STAGES = ["prepare-train", "prepare-val", "train", "evaluate", "register", "predict"]
RECIPES = Path(__file__).parents[2] / "pipelines/recipes"


def configuration(coco: Path, root: Path, **changes: Any) -> RunConfig:
    splits = {
        name: {
            "annotations": f"{coco}/annotations/instances_{name}.json",
            "images": f"{coco}/images/{name}",
        }
        for name in ("train", "val")
    }
    sections = {
        "name": "tiny",
        "storage": str(root),
        "data": splits,
        "model": {
            "backbone": "resnet18",
            "width": 64,
            "anchors": {"base_sizes": (8, 16, 32, 64, 128)},
        },
        "canvas": {"height": 64, "width": 96},
        "optimizer": {"name": "adamw", "learning_rate": 0.001},
        "training": {"epochs": 1, "batch_size": 8, "workers": 1},
        "overlays": 2,
    }
    return RunConfig.model_validate({**sections, **changes})


def stage_lines(said: str) -> dict[str, str]:
    """The last line of every stage, without its name."""
    return {
        line[1 : line.index("]")]: line[line.index("]") + 2 :]
        for line in said.splitlines()
        if line[1:].startswith(tuple(f"{s}]" for s in STAGES))
    }


@pytest.fixture
def yolo(small_coco: Path, tmp_path: Path) -> str:
    """A zip in `tmp_path` of one YOLO source without splits. It has the images of both splits of
    `small_coco`, 32 in all.
    """
    images, labels = tmp_path / "yolo/images", tmp_path / "yolo/labels"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for split in ("train", "val"):
        listed = json.loads((small_coco / f"annotations/instances_{split}.json").read_text())
        numbers = {category["id"]: n for n, category in enumerate(listed["categories"])}
        (labels / "classes.txt").write_text(
            "".join(f"{category['name']}\n" for category in listed["categories"])
        )
        for image in listed["images"]:
            name, height, width = image["file_name"], image["height"], image["width"]
            (images / f"{split}-{name}").write_bytes(
                (small_coco / "images" / split / name).read_bytes()
            )
            lines = []
            for annotation in listed["annotations"]:
                if annotation["image_id"] == image["id"] and not annotation.get("iscrowd"):
                    x, y, w, h = annotation["bbox"]
                    shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                    label = numbers[annotation["category_id"]]
                    lines.append(" ".join(map(str, (label, *shares))) + "\n")
            (labels / f"{split}-{name}").with_suffix(".txt").write_text("".join(lines))
    shutil.make_archive(str(tmp_path / "yolo"), "zip", tmp_path / "yolo")
    return "yolo.zip"


def type_run(*words: str) -> None:
    """The command as it is typed, in this process."""
    with pytest.raises(SystemExit) as end:
        run_verb(RunConfig, main, description="test", argv=list(words), read=read)
    assert end.value.code == 0


TINY_FLAGS = [
    "--name=tiny",
    "--data.train.val_share=0.3",
    "--data.val.val_share=0.3",
    "--storage=out",
    "--model.backbone=resnet18",
    "--model.width=64",
    "--model.anchors.base_sizes=8,16,32,64,128",
    "--canvas.height=64",
    "--canvas.width=96",
    "--optimizer.name=adamw",
    "--optimizer.learning_rate=0.001",
    "--training.epochs=1",
    "--training.batch_size=8",
    "--training.workers=1",
    "--training.evaluation=between",
    # An untrained detector is sure of nothing.
    "--decode.score_threshold=0",
    "--overlays=1",
]


@pytest.mark.integration
def test_a_zip_is_recognised_and_split_and_runs_once_and_then_only_what_changed(
    yolo: str,
    small_coco: Path,
    ray_cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    type_run(yolo, *TINY_FLAGS)
    said = capsys.readouterr().out
    lines = stage_lines(said)
    assert list(lines) == STAGES and all(line.startswith("done in ") for line in lines.values())

    # Trained on one part, predicted on the other. YOLO has no image ids: prepare numbers the images
    # of the whole source, and predictions use these numbers.
    ids = {}
    for split in ("train", "val"):
        (folder,) = tmp_path.glob(f"out/data/{split}/tiny-*")
        stored = read_columns(open_shard_set(str(folder)), ["image_id", "file_name"]).to_pylist()
        ids[split] = {row["file_name"]: row["image_id"] for row in stored}
    assert ids["train"] and ids["val"] and not ids["train"].keys() & ids["val"].keys()
    assert sorted([*ids["train"].values(), *ids["val"].values()]) == list(range(1, 33))
    (predictions,) = tmp_path.glob("out/predictions/tiny-*")
    rows = pq.read_table(predictions / "predictions.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert sorted(Path(row["uri"]).name for row in rows) == sorted(ids["val"])
    results = json.loads((predictions / "coco_results.json").read_text())
    assert {entry["image_id"] for entry in results} == set(ids["val"].values())
    assert len(list(predictions.glob("overlays/*.png"))) == 1
    assert len(list(tmp_path.glob("out/evaluations/tiny-*/overlays/*.png"))) == 1
    summary = said[said.rindex("\n\n") :]
    assert "model        models:/tiny/1" in summary
    assert f"predictions  {predictions}" in summary
    assert "ui --backend-store-uri" in summary and "/report.html in a browser" in summary
    assert f"predicts on the {len(ids['val'])} pictures of data.val" in said
    assert f"has {-(-len(ids['train']) // 8)} updates of the weights, too few" in said

    # The command again, and the file that it wrote.
    type_run(yolo, *TINY_FLAGS)
    again = capsys.readouterr().out
    assert "settings    those of out/tiny.yaml" in again
    type_run("--config", "out/tiny.yaml")
    assert stage_lines(capsys.readouterr().out) == stage_lines(again)
    lines = stage_lines(again)
    assert list(lines) == STAGES
    assert all(line.startswith("reused (fingerprint ") for line in lines.values())
    assert again[again.rindex("\n\n") :] == summary

    # Only the last stage depends on the pictures; no stage depends on the number of workers.
    two_workers = [flag.replace("training.workers=1", "training.workers=2") for flag in TINY_FLAGS]
    type_run(yolo, *two_workers, f"--pictures={small_coco}/images/train")
    lines = stage_lines(capsys.readouterr().out)
    assert [name for name, line in lines.items() if not line.startswith("reused")] == ["predict"]
    assert sorted(
        pq.read_table(folder / "predictions.parquet").num_rows
        for folder in tmp_path.glob("out/predictions/tiny-*")
    ) == sorted([len(ids["val"]), 24])


def test_a_wrong_path_is_found_before_any_stage_runs(
    small_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = configuration(small_coco, tmp_path / "out").model_dump(mode="json")
    config["data"]["val"]["images"] = f"{small_coco}/images/none"
    flags = [
        f"--data.{split}.{name}={config['data'][split][name]}"
        for split in ("train", "val")
        for name in ("annotations", "images")
    ]
    with pytest.raises(SystemExit) as end:
        run_verb(
            RunConfig, main, description="test", argv=[*flags, "--storage", str(tmp_path / "out")]
        )
    said = capsys.readouterr()
    assert (
        end.value.code == 2
        and "images/none: there is no such file or folder" in said.err
        and said.err.count("\n") == 1
    )
    assert not list(tmp_path.rglob("stage.json")) and "[prepare" not in said.out


def test_the_quickstart_recipe_is_a_configuration() -> None:
    config = parse(RunConfig, ["--config", str(RECIPES / "quickstart.yaml")])
    assert config.data.train.images == "data/quickstart/images/train" and not config.tune
    # Each shape of 14 to 160 px on 320 px, 11 to 128 px on 256: within a factor of 1.5 of an
    # anchor's side, so that an IoU of 0.4 can be had.
    assert (config.canvas.height, config.canvas.width) == (192, 256)
    assert (
        config.model.anchors.base_sizes[0] / 1.5 < 14 * 256 / 320
        and config.model.anchors.base_sizes[-1] > 160 * 256 / 320
    )
