"""What a user gets wrong ends in one plain line that names it, with the right exit code, before a
machine is spent and without a traceback.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from pipelines import evaluate, predict, prepare, register, shards, train
from pipelines.command_line import run_verb

VERBS = {
    "prepare": (prepare.PrepareConfig, prepare.main),
    "shards": (shards.ShardsConfig, shards.main),
    "train": (train.TrainVerb, train.main),
    "evaluate": (evaluate.EvaluateConfig, evaluate.main),
    "register": (register.RegisterConfig, register.main),
    "predict": (predict.PredictConfig, predict.main),
}


@pytest.fixture(scope="module")
def places(small_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths that the command lines below name."""
    folder = tmp_path_factory.mktemp("bad")
    annotations = json.loads((small_coco / "annotations/instances_val.json").read_text())
    (folder / "malformed.json").write_text('{"images": [')
    (folder / "no-images.json").write_text(
        json.dumps({**annotations, "images": [], "annotations": []})
    )
    (folder / "empty").mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{listener.getsockname()[1]}"
    good = str(small_coco / "annotations/instances_val.json")
    return {
        "dir": str(folder),
        "good": good,
        "images": str(small_coco / "images/val"),
        "dead": dead,
    }


CASES = [
    ("prepare --annotations {dir}/none.json --images {images} --output {dir}/out", 2, "none.json"),
    (
        "prepare --annotations {dir}/malformed.json --images {images} --output {dir}/out",
        3,
        "malformed.json",
    ),
    (
        "prepare --annotations {dir}/no-images.json --images {images} --output {dir}/out",
        3,
        "list of images is empty",
    ),
    ("prepare --annotations {good} --images {dir}/nowhere --output {dir}/out", 2, "nowhere"),
    (
        "prepare --annotations {good} --images {dir}/empty --output {dir}/out",
        3,
        "8 x the file is not in the images folder",
    ),
    (
        "prepare --annotations {good} --images {images} --output s3://no-such-bucket/out",
        2,
        "no-such-bucket",
    ),
    ("prepare --annotations {good} --images {images} --output ftp://host/out", 2, "ftp"),
    ("prepare --annotations {good} --images {images}", 2, "output"),
    (
        "prepare --annotations {good} --images {images} --output {dir}/out --max_quarantined 2",
        2,
        "max_quarantined",
    ),
    ("shards --data {dir}/nowhere", 2, "nowhere: there is no such file or folder"),
    ("shards --data {dir}/empty", 2, "not a shard set, or its prepare did not finish"),
    ("shards --data s3://no-such-bucket/x", 2, "no bucket 'no-such-bucket'"),
    ("shards --data gs://bucket/x", 2, "the scheme gs:// is not supported"),
    ("shards", 2, "--data is required: the shard set"),
    ("shards --data {dir}/a --samples 8", 2, "samples 8: needs --output"),
    ("shards --data {dir}/a --output {dir}/out", 2, "say how many, such as --samples 8"),
    ("shards --data {dir}/a --samples -1 --output {dir}/out", 2, "samples '-1'"),
    ("train --data.train {dir}/empty --data.val {dir}/empty --storage {dir}", 2, "not a shard set"),
    (
        "train --data.train {dir}/a --data.val {dir}/b --model.backbone resnet19",
        2,
        "model.backbone",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --model.anchors.strides 8,16,64",
        2,
        "double from level to level",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --model.anchors.base_sizes 32,64",
        2,
        "give one size a stride",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --model.norm sync"
        " --training.gpus_per_worker 0",
        2,
        "needs training.gpus_per_worker 1",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --model.norm frozen",
        2,
        "fixes weights that nothing has trained; give --pretrained",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --model.frozen_stages 2",
        2,
        "model.frozen_stages 2: fixes weights that nothing has trained",
    ),
    ("train --data.train {dir}/a --data.val {dir}/b --canvas.width 333", 2, "canvas.width 333"),
    (
        "train --data.train {dir}/a --data.val {dir}/b --canvas.shapes [[800,1088],[800,1350]]",
        2,
        "canvas.shapes[1] width 1350",
    ),
    (
        (
            "train --data.train {dir}/a --data.val {dir}/b --canvas.shapes"
            " [[96,96],[96,64],[64,96],[96,128]]"
        ),
        2,
        "at most 3 different ones",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --augmentation.short_sides 800,640",
        2,
        "augmentation.short_sides 800,640",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --augmentation.short_sides 800",
        2,
        "augmentation.short_sides [800]: field required (LOW,HIGH",
    ),
    ("train --data.train {dir}/a --data.val {dir}/b --loss.gama 2", 2, "loss.gamma"),
    (
        (
            "train --data.train {dir}/a --data.val {dir}/b --loss.classification cross_entropy"
            " --loss.gamma 3"
        ),
        2,
        "loss.gamma 3: does nothing",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --optimizer.milestones 0.5",
        2,
        "optimizer.milestones 0.5: does nothing where",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --training.accumulate 3",
        2,
        "training.accumulate 3: must divide the 16 images",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --tracking.uri http://{dead}",
        1,
        "no MLflow server answers",
    ),
    ("train --config {dir}/none.yaml", 2, "none.yaml"),
    ("evaluate --run {dir}/nowhere --data {dir}/a", 2, "there is no such folder; check --run"),
    ("evaluate --data {dir}/a", 2, "either --run or --model"),
    (
        "evaluate --run {dir}/a --data {dir}/a --max_detections 0",
        2,
        "max_detections '0': must be greater than or equal to 1",
    ),
    (
        "evaluate --run {dir}/a --data {dir}/a --tile 63",
        2,
        "tile '63': must be greater than or equal to 64",
    ),
    (
        "evaluate --run {dir}/a --data {dir}/a --tile 512 --overlap 0.95",
        2,
        "overlap '0.95': must be less than or equal to 0.9",
    ),
    (
        "evaluate --run {dir}/a --data {dir}/a --overlap 0.3",
        2,
        "overlap 0.3: does nothing without --tile",
    ),
    ("register --run {dir}/empty --name cells", 2, "not "),
    (
        "predict --model cells --images {images} --output {dir}/p --storage {dir}",
        2,
        "models:/NAME@champion",
    ),
    (
        (
            "predict --model models:/cells@champion --images {dir}/empty --output {dir}/p --storage"
            " {dir}"
        ),
        3,
        "no picture below it (it is empty); check the folder",
    ),
    # A file where a folder is needed, a folder where a file is needed.
    ("shards --data {good}", 2, "instances_val.json: not a shard set"),
    ("train --data.train {good} --data.val {dir}/b", 2, "instances_val.json: not a shard set"),
    (
        "evaluate --run {good} --data {good}",
        2,
        "instances_val.json: is not a training run's folder; check --run",
    ),
    (
        "prepare --annotations {good} --images {images} --output {dir}/out --against {good}",
        2,
        "instances_val.json: not a shard set",
    ),
    (
        "train --data.train {dir}/a --data.val {dir}/b --storage {good}",
        2,
        "instances_val.json: is a file, a folder is needed",
    ),
    (
        "predict --model models:/cells@champion --images {good} --output {dir}/p --storage {dir}",
        3,
        "{good}: is a file and no picture that can be read (JPEG, PNG, ",
    ),
    (
        "predict --model models:/cells@champion --images {images} --output {images}",
        2,
        "is --images {images} or lies above it",
    ),
    (
        (
            "predict --model models:/cells@champion --images {images} --output {dir}/p --storage"
            " {dir} --annotations {dir}"
        ),
        2,
        "--annotations {dir}: is a folder, a file is needed",
    ),
    (
        (
            "predict --model models:/cells@champion --images {images} --output {dir}/p --storage"
            " {dir} --classes {dir}/map.yaml"
        ),
        2,
        "map.yaml: does nothing without --annotations",
    ),
    (
        (
            "predict --model models:/cells@champion --images {images} --output {dir}/p --storage"
            " {dir} --annotations {dir}/none.json"
        ),
        2,
        "none.json: there is no such file",
    ),
    (
        (
            "predict --model models:/cells@champion --images {images} --output {dir}/p --storage"
            " {dir} --annotations {dir}/no-images.json"
        ),
        2,
        "names none of the 8 pictures below",
    ),
    (
        (
            "predict --model models:/cells@champion --images s3://no-such-bucket/x --output {dir}/p"
            " --storage {dir}"
        ),
        2,
        "no-such-bucket",
    ),
]


@pytest.mark.parametrize(("line", "code", "excerpt"), CASES)
def test_one_plain_line_and_the_exit_code(
    line: str,
    code: int,
    excerpt: str,
    places: dict[str, str],
    s3: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb, *arguments = line.format(**places).split()
    config, main = VERBS[verb]
    with pytest.raises(SystemExit) as ended:
        run_verb(config, main, description="", argv=arguments)
    printed = capsys.readouterr()
    (message,) = printed.err.strip().splitlines()
    assert message.startswith("error: ")
    assert ended.value.code == code, message
    assert excerpt.format(**places) in message
    assert "a bug" not in message
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"])
def test_a_dead_endpoint_is_named_and_no_secret_is_shown(
    name: str,
    places: dict[str, str],
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame-open")
    if name == "AWS_ENDPOINT_URL":
        monkeypatch.setenv(name, f"http://{places['dead']}")
    arguments = [
        "--annotations",
        places["good"],
        "--images",
        places["images"],
        "--output",
        "s3://no-such-bucket/out",
    ]
    with pytest.raises(SystemExit) as ended:
        run_verb(prepare.PrepareConfig, prepare.main, description="", argv=arguments)
    printed = capsys.readouterr()
    assert ended.value.code in (1, 2)
    assert "sesame-open" not in printed.out + printed.err
    if name == "AWS_ENDPOINT_URL":
        assert places["dead"] in printed.err


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_data_behind_a_dead_endpoint_is_told_before_anything_is_read(
    verb: str,
    places: dict[str, str],
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the client that gives up soon, a mistake of the user (2); the patient one tries for
    minutes and calls it a failure (1).
    """
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{places['dead']}")
    config, main, arguments = {
        "train": (
            train.TrainVerb,
            train.main,
            [
                "--data.train",
                "s3://b/train",
                "--data.val",
                "s3://b/val",
                "--storage",
                places["dir"],
            ],
        ),
        "evaluate": (
            evaluate.EvaluateConfig,
            evaluate.main,
            ["--run", "s3://b/run", "--data", "s3://b/val"],
        ),
    }[verb]
    with pytest.raises(SystemExit) as ended:
        run_verb(config, main, description="", argv=arguments)
    assert ended.value.code == 2
    assert f"{places['dead']} does not answer" in capsys.readouterr().err
