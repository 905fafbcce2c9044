"""One image's way, through the verbs: shards in a bucket -> two workers -> checkpoints ->
evaluation -> registry -> predictions.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import save_file

from cluster.compute import session
from cluster.compute.session import RayConfig
from cluster.errors import PlainError, UsageError
from cluster.runs import evaluations, run_folder
from cluster.runs.config import TrainConfig, TrainOptions
from cluster.runs.events import (
    EvaluationDone,
    EvaluationStarted,
    Event,
    Started,
    StepsDone,
    TrainingWarning,
    WeightsLoaded,
)
from cluster.storage import files
from cluster.tracking.config import TrackingConfig
from cluster.training import background_evaluation, launch, preflight
from detector.model import RetinaNet

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "model": {
        "backbone": "resnet18",
        "width": 64,
        "head_norm": "group",
        "anchors": {"base_sizes": [12, 24, 48, 96, 192]},
    },
    "canvas": {"height": 96, "width": 128},
    "optimizer": {"name": "adamw", "learning_rate": 0.001, "ema_images": 20},
    "training": {
        "epochs": 2,
        "batch_size": 4,
        "workers": 2,
        "cpus_per_worker": 0.5,
        "log_steps": 2,
        "evaluate_every": 2,
        "evaluation": "between",
    },
}
BESIDE: dict[str, Any] = {**TINY["training"], "evaluate_every": 1, "evaluation": "beside"}


@pytest.fixture(scope="module")
def shards(s3: str, small_sets: dict[str, str]) -> dict[str, str]:
    """The small shard sets in a bucket of this module's own, and the bucket."""
    import boto3

    boto3.client("s3").create_bucket(Bucket="train-tests")
    uris = {"bucket": "s3://train-tests"}
    for split, folder in small_sets.items():
        uris[split] = f"s3://train-tests/data/{split}"
        files.upload_folder(folder, uris[split])
    return uris


def config(shards: dict[str, str], **changes: Any) -> TrainConfig:
    sections = {
        **TINY,
        "data": {"train": shards["train"], "val": shards["val"]},
        "storage": f"{shards['bucket']}/store",
        "name": "cells",
        **changes,
    }
    return TrainConfig.model_validate(sections)


@pytest.fixture(scope="module")
def trained(shards: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished run of two epochs, each evaluated beside training, and the MLflow store it is
    recorded in. Its workers are those that the cluster of four CPUs makes of `auto`.
    """
    from pipelines.training_run import train

    store = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    chosen = config(shards, training=BESIDE)
    training = {name: value for name, value in BESIDE.items() if name != "workers"}
    asked = TrainOptions.model_validate({**chosen.model_dump(), "training": training})
    best = train(asked, ray=RayConfig(), tracking=TrackingConfig(uri=store)).best
    return {"config": chosen, "best": best, "store": store}


@pytest.mark.integration
def test_a_run_leaves_complete_checkpoints_and_one_mlflow_run(
    trained: dict[str, Any], shards: dict[str, str]
) -> None:
    run = trained["config"].run_uri
    # 24 train images, two epochs, a checkpoint after each.
    assert run_folder.checkpoints(run) == [f"{run}/checkpoints/images-{n:012d}" for n in (24, 48)]
    names = {
        os.path.basename(uri)
        for uri, _ in files.list_files(f"{run}/checkpoints/images-000000000048")
    }
    assert names == {"model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"}
    # Which of the two is the better one after so short a training is a matter of the last bits, and
    # of the machine.
    finished = evaluations.read(run)
    assert [each.images_seen for each in finished] == [24, 48]
    assert trained["best"] == evaluations.best_of(finished)
    assert trained["best"].ap == max(each.ap for each in finished)
    assert trained["best"].weights == "ema"
    assert run_folder.read_finished(run) == run_folder.Finished(48, 2)
    # The values used, and not the word auto.
    claim = run_folder.read_claim(run)
    assert claim is not None and claim.config == trained["config"].model_dump(mode="json")

    import mlflow

    recorded = run_folder.read_tracking(run)
    found = mlflow.MlflowClient(trained["store"]).get_run(recorded.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["model.backbone"] == "resnet18"
    assert found.data.params["data.train"]
    assert {
        "train/classification",
        "train/images_per_second",
        "val/AP",
        "val/AP50",
    } <= found.data.metrics.keys()
    history = mlflow.MlflowClient(trained["store"]).get_metric_history(
        recorded.run_id, "train/classification"
    )
    # 24 images in steps of 4, two steps a line: after 8, 16, 24, ... images.
    assert [m.step for m in history] == [8, 16, 24, 32, 40, 48]
    history = mlflow.MlflowClient(trained["store"]).get_metric_history(recorded.run_id, "val/AP")
    assert [m.step for m in history] == [24, 48]
    assert [m.value for m in history] == [each.ap for each in evaluations.read(run)]


@pytest.mark.integration
def test_the_mlflow_run_shows_what_was_trained_on_and_detected(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    import mlflow

    run_id = run_folder.read_tracking(trained["config"].run_uri).run_id
    client = mlflow.MlflowClient(trained["store"])
    there = {
        file.path
        for folder in (None, "train_batches", "val_predictions")
        for file in client.list_artifacts(run_id, folder)
    }
    pictures = {
        "labels.png",
        "curves.png",
        *(f"train_batches/batch-{number}.jpg" for number in range(2)),
        *(f"val_predictions/epoch-00{epoch}.jpg" for epoch in (1, 2)),
    }
    assert pictures <= there
    for name in pictures:
        with Image.open(client.download_artifacts(run_id, name, str(tmp_path))) as picture:
            # One colour would be an empty one.
            assert len(picture.convert("L").getcolors()) > 50, name
    labels = json.loads(
        Path(client.download_artifacts(run_id, "labels.json", str(tmp_path))).read_text()
    )
    assert (labels["data.train"]["images"], labels["data.val"]["images"]) == (24, 8)


@pytest.mark.integration
def test_the_same_command_again_finds_the_run_finished(trained: dict[str, Any]) -> None:
    assert launch.launch(trained["config"]) == trained["best"]


@pytest.mark.integration
def test_evaluations_that_wait_are_made_by_the_same_command_and_come_to_the_same_numbers(
    trained: dict[str, Any], shards: dict[str, str]
) -> None:
    """A driver that was killed after its training's end: the next one evaluates, in two shares
    where a single process did so beside training.
    """
    run = trained["config"].run_uri
    before = evaluations.read(run)
    files.delete_file(f"{run}/{evaluations.EVALUATIONS}")
    for each in before:
        evaluations.store_request(run, each.request)
    events: list[Event] = []
    assert launch.launch(trained["config"], on_event=events.append) == trained["best"]
    assert evaluations.read(run) == before and evaluations.waiting(run) == []
    assert [type(event) for event in events] == [EvaluationStarted, EvaluationDone] * 2
    started, done = events[::2], events[1::2]
    assert [(event.images_seen, event.epoch) for event in started] == [(24, 1), (48, 2)]
    assert [event.evaluation for event in done] == before


@pytest.mark.integration
def test_a_training_that_fails_ends_the_evaluation_beside_it_which_waits_for_the_next_start(
    trained: dict[str, Any], shards: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_evaluation, "LOOK_EVERY_S", 0.05)
    run, checkpoint = (
        str(tmp_path / "run"),
        evaluations.read(trained["config"].run_uri)[1].checkpoint,
    )
    evaluations.store_request(run, evaluations.Request(checkpoint, 48, 2))
    events: list[Event] = []
    share = {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}
    evaluator = background_evaluation.ActorEvaluator(shards["val"], weights="model", share=share)
    beside = background_evaluation.BackgroundEvaluation(run, evaluator, tell=events.append)
    with pytest.raises(RuntimeError, match="a worker"), beside:
        while evaluator.running is None:
            time.sleep(0.01)
        actor = evaluator.running
        raise RuntimeError("a worker")
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.evaluate.remote(None, "model", "", {}))
    assert not beside.is_alive() and [type(event) for event in events] == [EvaluationStarted]
    assert len(evaluations.waiting(run)) == 1 and evaluations.read(run) == []


@pytest.mark.integration
def test_another_configuration_under_the_same_name_is_refused(
    trained: dict[str, Any], shards: dict[str, str]
) -> None:
    changed = config(shards, loss={"gamma": 1.0}, training=BESIDE)
    with pytest.raises(UsageError, match="loss.gamma was 2.0, is 1.0"):
        launch.launch(changed)


@pytest.mark.integration
def test_worker_counts_may_differ_when_a_run_is_continued(
    trained: dict[str, Any], shards: dict[str, str]
) -> None:
    assert (
        launch.launch(config(shards, training={**BESIDE, "workers": 1, "cpus_per_worker": 1.0}))
        == trained["best"]
    )


@pytest.fixture(scope="module")
def evaluated(trained: dict[str, Any], shards: dict[str, str]) -> dict[str, str]:
    """The folder of the run's evaluation on the val set, and what the verb printed."""
    from pipelines import evaluate

    output = f"{shards['bucket']}/evaluation"
    options = {"data": shards["val"], "output": output, "overlays": 2, "workers": 1}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        evaluate.main(evaluate.EvaluateConfig(run=trained["config"].run_uri, **options))
    return {"output": output, "said": said.getvalue()}


@pytest.mark.integration
def test_evaluate_register_predict_agree(
    trained: dict[str, Any],
    evaluated: dict[str, str],
    small_coco: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """AP of the best checkpoint in training, from `evaluate`, and from `predict`'s COCO results by
    pycocotools on the user's own JSON are one number.
    """
    from pipelines import predict, register

    output = evaluated["output"]
    table = files.read_json(f"{output}/metrics.json")
    assert table["images"] == 8
    assert table["AP"] == trained["best"].ap
    written = {os.path.relpath(uri, output) for uri, _ in files.list_files(output)}
    assert {"metrics.json", "table.txt", "precision_recall.png"} <= written
    assert len([name for name in written if name.startswith("overlays/")]) == 2

    register.main(register.RegisterConfig(run=trained["config"].run_uri, name="cells"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in (small_coco / "images/val").iterdir():
        (pictures / path.name).write_bytes(path.read_bytes())
    (pictures / "broken.jpg").write_bytes(b"not a picture")
    output = str(tmp_path / "predictions")
    annotations = str(small_coco / "annotations/instances_val.json")
    chosen = predict.PredictConfig(
        model="models:/cells@champion",
        images=str(pictures),
        output=output,
        annotations=annotations,
        overlays=1,
        tracking=TrackingConfig(uri=trained["store"]),
        workers=1,
        cpus_per_worker=1.0,
    )
    predict.main(chosen)
    summary = files.read_json(f"{output}/summary.json")
    assert (summary["model_version"], summary["images"], summary["ok"], summary["errors"]) == (
        "models:/cells/1",
        9,
        8,
        1,
    )
    # These are the pictures of data.val: the model finds in them what it found in validation.
    assert summary["validation_images"] == 8 and summary["drift"] == []
    assert summary["classes"][-1]["here"]["detections"] > 0
    for found in summary["classes"]:
        assert found["here"] == found["validation"]
    assert summary["image_sizes"] == summary["validation_sizes"]
    page = Path(output, "summary.html").read_text()
    assert "models:/cells/1" in page and "<th>validation</th>" in page
    rows = read_parquet(f"{output}/predictions.parquet")
    assert [Path(row["uri"]).name for row in rows] == sorted(
        path.name for path in pictures.iterdir()
    )
    (broken,) = (row for row in rows if row["status"] == "error")
    assert broken["uri"].endswith("broken.jpg")
    assert "cannot be decoded" in broken["error"]

    results = json.loads(Path(output, "coco_results.json").read_text())
    truth = COCO(annotations)
    scored = COCOeval(truth, truth.loadRes(results), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(table["AP"], abs=1e-6)
    assert scored.stats[1] == pytest.approx(table["AP50"], abs=1e-6)

    # The same command again finds it done; another model is refused.
    before = Path(output, "manifest.json").stat().st_mtime_ns
    predict.main(chosen)
    assert Path(output, "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="has another prediction: overlays is 2, there 1"):
        predict.main(chosen.model_copy(update={"overlays": 2}))

    # Where no cluster is there a few images need no Ray, and have the same results.
    monkeypatch.setattr(session, "would_start", lambda address: address is None)
    monkeypatch.setattr(session, "connect", lambda *_, **__: pytest.fail("Ray is started"))
    capsys.readouterr()
    here = str(tmp_path / "here")
    predict.main(chosen.model_copy(update={"workers": None, "output": here}))
    assert "\nnote     few images: predicted in this process" in capsys.readouterr().out
    for name in ("predictions.parquet", "coco_results.json", "overlays"):
        one, other = Path(here, name), Path(output, name)
        files_of = [sorted(p.glob("*")) if p.is_dir() else [p] for p in (one, other)]
        assert [p.read_bytes() for p in files_of[0]] == [p.read_bytes() for p in files_of[1]], name


@pytest.fixture(scope="module")
def turned(small_coco: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The val set with the ids of its classes in the opposite order, and so its labels."""
    from pipelines.prepare import PrepareConfig, main

    folder = tmp_path_factory.mktemp("turned")
    content = json.loads((small_coco / "annotations/instances_val.json").read_text())
    ids = {each["id"]: 1000 - each["id"] for each in content["categories"]}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    (folder / "val.json").write_text(json.dumps(content))
    options = {"images": str(small_coco / "images/val"), "output": str(folder / "set")}
    main(PrepareConfig(annotations=str(folder / "val.json"), **options))
    return str(folder / "set")


@pytest.mark.integration
def test_classes_in_another_order_have_the_same_ap_and_that_is_said(
    trained: dict[str, Any],
    evaluated: dict[str, str],
    shards: dict[str, str],
    turned: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cluster.shards.index import open_shard_set
    from pipelines import evaluate

    assert open_shard_set(turned).class_names == open_shard_set(shards["val"]).class_names[::-1]
    options = {"run": trained["config"].run_uri, "data": turned, "overlays": 0, "workers": 1}
    evaluate.main(evaluate.EvaluateConfig(output=str(tmp_path), **options))
    straight, other = (
        files.read_json(f"{output}/metrics.json") for output in (evaluated["output"], tmp_path)
    )
    assert other["per_class"] == straight["per_class"] and other["AP"] == trained["best"].ap
    note = "note     data has its classes in another order; they are matched by"
    assert capsys.readouterr().out.count(note) == 1 and note not in evaluated["said"]


def test_training_takes_a_val_set_with_its_classes_in_another_order(
    shards: dict[str, str], turned: str
) -> None:
    chosen = config(shards, name="turned", data={"train": shards["train"], "val": turned})
    assert preflight.check(chosen).notes == (
        "data.val has its classes in another order; they are matched by name",
    )


@pytest.mark.integration
def test_a_set_of_other_classes_is_refused_before_inference(
    trained: dict[str, Any], shards: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.compute import session
    from pipelines import evaluate

    index = json.loads(files.read_bytes(f"{shards['val']}/index.json"))
    index["categories"][1]["name"] = "Squares"
    other = tmp_path / "other"
    files.download_folder(shards["val"], str(other))
    (other / "index.json").write_text(json.dumps(index))
    options = {"run": trained["config"].run_uri, "data": str(other), "output": f"{tmp_path}/out"}
    with pytest.raises(UsageError, match=r"its 5 classes are not the 5 of .*'Squares' \(near: "):
        preflight.check(
            config(shards, name="x", data={"train": shards["train"], "val": str(other)})
        )
    monkeypatch.setattr(session, "connect", lambda *_, **__: pytest.fail("Ray was asked"))
    with pytest.raises(UsageError, match=r"its 5 classes are not the 5 of .*--classes FILE"):
        evaluate.main(evaluate.EvaluateConfig(**options))
    (tmp_path / "map.yaml").write_text("Squares: square")
    with pytest.raises(pytest.fail.Exception, match="Ray was asked"):
        evaluate.main(evaluate.EvaluateConfig(classes=f"{tmp_path}/map.yaml", **options))


def read_parquet(path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


@pytest.mark.integration
def test_an_update_that_is_not_finite_is_skipped_and_the_next_one_stops_the_run_for_good(
    shards: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second and third step rank 1's first image gives NaN. Both ranks skip the update,
    continue, then stop; the user is told whose it was. A restart cannot fix that, so there is none.
    The run starts from a weight file: the workers read the run's copy of it.
    """
    parts = {name: value for name, value in TINY["model"].items() if name != "anchors"}
    network = RetinaNet(classes=3, **parts, **TINY["model"]["anchors"])
    path = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, str(path))

    def poisoned(told: dict[str, Any]) -> None:
        from contextlib import closing

        worker, calls = launch.worker_of(told), []

        def spoil(
            _: object, __: object, outputs: tuple[list[torch.Tensor], ...]
        ) -> tuple[list[torch.Tensor], ...] | None:
            calls.append(1)
            if worker.ranks.rank != 1 or len(calls) not in (2, 3):
                return None
            logits, offsets = outputs
            factor = torch.ones(len(logits[0]), 1, 1)
            factor[0] = float("nan")
            return [level * factor for level in logits], offsets

        with closing(worker.stream):
            worker.state.model.register_forward_hook(spoil)
            worker.train()

    monkeypatch.setattr(launch, "train_on_worker", poisoned)
    events: list[Event] = []
    training = {**TINY["training"], "skip_nonfinite": 1, "log_steps": 1}
    chosen = config(shards, name="poisoned", pretrained=str(path), training=training)
    assert chosen.training.retries == 2
    with pytest.raises(
        PlainError,
        match=(
            r"^training poisoned stopped: step 3, rank 1: the loss of images \[\d+\] is not finite"
        ),
    ):
        launch.launch(chosen, on_event=events.append)
    (warning,) = [event.text for event in events if isinstance(event, TrainingWarning)]
    assert re.match(
        r"step 2, rank 1: the loss of images \[\d+\] is not finite .*; its update was skipped",
        warning,
    )
    (steps,) = [event for event in events if isinstance(event, StepsDone)]
    assert steps.images_seen == 4 and math.isfinite(steps.classification)
    assert len([event for event in events if isinstance(event, Started)]) == 1
    (weights,) = [event for event in events if isinstance(event, WeightsLoaded)]
    assert weights.uri.startswith(f"{chosen.run_uri}/pretrained/")
    assert files.read_bytes(weights.uri) == path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"train": "s3://train-tests/nothing", "val": "s3://train-tests/data/val"}},
            "not a shard set",
        ),
        (
            {"data": {"train": "s3://no-such-bucket/a", "val": "s3://train-tests/data/val"}},
            "no-such-bucket",
        ),
        ({"storage": "s3://no-such-bucket/store"}, "no-such-bucket"),
        (
            {"sampling": {"source_weights": {"night": 2.0}}},
            "sampling.source_weights night: is no source of data.train",
        ),
    ],
)
def test_wrong_places_are_refused_before_workers_start(
    shards: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        preflight.check(config(shards, **{"name": "refused", **changes}))


def test_more_workers_than_the_cluster_has(shards: dict[str, str]) -> None:
    from pipelines.training_run import train

    greedy = config(
        shards, name="greedy", training={**TINY["training"], "workers": 4, "cpus_per_worker": 2.0}
    )
    with pytest.raises(UsageError, match="needs 9 CPUs, the cluster has 4"):
        train(
            greedy, ray=RayConfig(), tracking=TrackingConfig(uri="sqlite:////tmp/never-created.db")
        )
    # Two workers book 1.5, three tasks beside them 3 x (0.75 + 0.25).
    greedy = config(shards, name="greedy", training={**BESIDE, "evaluation_workers": 3})
    with pytest.raises(
        UsageError,
        match=(
            r"and 3 x \(evaluation_cpus 0.75 \+ 0.25\) of training.evaluation needs 4.5 CPUs, the"
            r" cluster has 4"
        ),
    ):
        train(
            greedy, ray=RayConfig(), tracking=TrackingConfig(uri="sqlite:////tmp/never-created.db")
        )


def test_a_batch_that_ranks_cannot_share_is_refused(shards: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="batch_size 4: must be a multiple of training.workers 3"):
        config(shards, training={**TINY["training"], "workers": 3})
