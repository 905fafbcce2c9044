"""All verbs in one process on the shared Ray cluster: what comes out, and what a second call
reuses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.runs.config import TrainConfig
from pipelines.command_line import parse, run_verb
from pipelines.run import main
from pipelines.workflow import RunConfig, Verbs

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


def test_everything_once_and_then_only_what_changed(
    small_coco: Path, ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main(configuration(small_coco, tmp_path))
    said = capsys.readouterr().out
    assert list(lines := stage_lines(said)) == STAGES and all(
        line.startswith("done in ") for line in lines.values()
    )
    (predictions,) = tmp_path.glob("predictions/tiny-*")
    assert pq.read_table(predictions / "predictions.parquet").num_rows == 8
    assert (
        len(list(predictions.glob("overlays/*.png"))) == 2
        and len(list(tmp_path.glob("evaluations/tiny-*/overlays/*.png"))) == 2
    )
    ids = {
        image["id"]
        for image in json.loads((small_coco / "annotations/instances_val.json").read_text())[
            "images"
        ]
    }
    assert {
        entry["image_id"] for entry in json.loads((predictions / "coco_results.json").read_text())
    } <= ids
    summary = said[said.rindex("\n\n") :]
    assert (
        "model        models:/tiny/1" in summary
        and f"predictions  {predictions}" in summary
        and "ui --backend-store-uri" in summary
    )

    main(configuration(small_coco, tmp_path))
    again = capsys.readouterr().out
    assert list(lines := stage_lines(again)) == STAGES and all(
        line.startswith("reused (fingerprint ") for line in lines.values()
    )
    assert again[again.rindex("\n\n") :] == summary

    # Pictures of one's own and another number of workers: only the last stage builds on either.
    main(
        configuration(
            small_coco,
            tmp_path,
            pictures=f"{small_coco}/images/train",
            training={"epochs": 1, "batch_size": 8, "workers": 2},
        )
    )
    lines = stage_lines(capsys.readouterr().out)
    assert [name for name, line in lines.items() if not line.startswith("reused")] == ["predict"]
    assert sorted(
        pq.read_table(folder / "predictions.parquet").num_rows
        for folder in tmp_path.glob("predictions/tiny-*")
    ) == [8, 24]


def test_the_best_of_a_sweep_is_what_is_trained(
    small_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(small_coco, tmp_path, tune=True)
    data = {"train": "/t", "val": "/v"}
    training = TrainConfig.model_validate(
        {**config.model_dump(include=set(TrainConfig.model_fields)), "data": data}
    )
    asked = []

    def sweep(given: TrainConfig, budget: Any, **_: Any) -> dict[str, Any]:
        asked.append(given.name)
        return {"best": "/best.yaml", "records": [{"sample": {"gamma": 3.5}}]}

    monkeypatch.setattr("pipelines.sweep.sweep", sweep)
    monkeypatch.setattr("cluster.compute.session.connect", lambda *_, **__: None)
    verbs = Verbs(config)
    found = verbs.sweep(training, {"seed": 0}, [])
    assert found.values["records"][0]["sample"] == {"gamma": 3.5}
    # The stage's folder is the sweep's: named like it.
    assert asked == [Path(found.folder).name] and found.folder.startswith(
        f"{tmp_path}/sweeps/tiny-"
    )


def test_a_wrong_path_costs_nothing(
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
