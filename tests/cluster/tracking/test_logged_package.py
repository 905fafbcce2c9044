"""A package as an MLflow model, against a real SQLite store."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import DataError, PlainError
from cluster.runs.package_files import PACKAGE_FILES, THRESHOLDS_FILE, package_digest
from cluster.tracking.client import connect
from cluster.tracking.file_digests import FILES_TAG, as_tag, file_digests
from cluster.tracking.logged_package import download_package, logged_digests
from cluster.tracking.promotion import register
from cluster.tracking.registry import DIGEST_TAG, Version
from detector.predict import Predictor
from tests.cluster.tracking.conftest import THRESHOLD

CLASSES = [{"label": 0, "id": 7, "name": "cell"}, {"label": 1, "id": 9, "name": "platelet"}]


def picture(seed, format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=format)
    return pixels, file.getvalue()


def test_a_model_names_its_inputs_outputs_and_requirements(tracking, logged, root):
    client = connect(tracking)
    model = client.get_logged_model(logged[0].removeprefix("models:/"))
    assert model.source_run_id == logged[1] and model.status == "READY"
    assert model.experiment_id == client.get_experiment_by_name("tests").experiment_id
    folder = model.artifact_location
    assert folder.startswith(f"{root}/mlartifacts/")
    names = {
        os.path.relpath(os.path.join(at, name), folder)
        for at, _, files in os.walk(folder)
        for name in files
    }
    assert "code/detector/predict.py" in names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pyc"))]
    with open(f"{folder}/requirements.txt", encoding="utf-8") as file:
        requirements = file.read().splitlines()
    assert f"torch=={torch.__version__.split('+')[0]}" in requirements and all(
        "==" in line and "+" not in line for line in requirements
    )
    from mlflow.models import Model

    signature = Model.load(folder).signature
    taken = [(column.name, column.type.name, column.required) for column in signature.inputs]
    assert taken == [("image", "binary", True), ("image_id", "string", False)]
    assert signature.outputs.input_names() == ["boxes", "scores", "labels", "names", "error"]


USE = """
import json, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
images = [open(f"{number}.png", "rb").read() for number in range(9)]
found = model.predict(pd.DataFrame({"image": images}))
broken = [b"GIF, or not", images[8], open("cut.jpg", "rb").read()]
fine = model.predict(pd.DataFrame({"image": broken}))
few = model.predict(pd.DataFrame({"image": images}), params={"thresholds": "f1"})
try:
    model.predict(pd.DataFrame({"image": images}), params={"thresholds": "f2"})
except mlflow.MlflowException as error:
    refusal = [error.error_code, str(error)]
import detector.predict
answers = [answer.to_dict("list") for answer in (found, fine, few)]
print(json.dumps([*answers, refusal, detector.predict.__file__]))
"""


def test_a_model_loads_elsewhere_without_pickle_and_detects_as_the_predictor_does(
    tracking, logged, package, tmp_path
):
    """Another process, another folder, nothing of the project on its path; more images than one
    call of the network takes.
    """
    folder = (
        connect(tracking).get_logged_model(logged[0].removeprefix("models:/")).artifact_location
    )
    pictures = [picture(seed) for seed in range(9)]
    for i, (_, data) in enumerate(pictures):
        (tmp_path / f"{i}.png").write_bytes(data)
    Image.fromarray(pictures[0][0]).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-20])
    (tmp_path / "use.py").write_text(USE)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_TRACKING_URI": tracking}
    used = subprocess.run(
        [sys.executable, "use.py", folder],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stderr
    found, fine, few, refusal, code = json.loads(used.stdout.splitlines()[-1])
    assert code == f"{folder}/code/detector/predict.py"
    # A broken picture costs its own row alone.
    assert found["error"] == [""] * 9 and found["boxes"][8] == fine["boxes"][1]
    assert ["it cannot be decoded" in text for text in fine["error"]] == [True, False, True]
    assert fine["boxes"][0] == fine["labels"][2] == []
    # Of the cells those from the threshold of their class on, no platelets: it has none.
    assert few["scores"] == [
        [s for s, label in zip(scores, labels, strict=True) if label == 0 and s >= THRESHOLD]
        for scores, labels in zip(found["scores"], found["labels"], strict=True)
    ]
    assert 0 < sum(map(len, few["scores"])) < sum(map(len, found["scores"]))
    assert refusal[0] == "INVALID_PARAMETER_VALUE" and "none or f1; give that" in refusal[1]

    expected = Predictor.load(package)([pixels for pixels, _ in pictures])
    assert sum(len(e.scores_N) for e in expected) > 0 and len(found["boxes"]) == 9
    for i, e in enumerate(expected):
        assert found["labels"][i] == e.labels_N.tolist()
        np.testing.assert_allclose(
            np.array(found["boxes"][i]).reshape(-1, 4), e.boxes_N4, atol=1e-3
        )
        np.testing.assert_allclose(found["scores"][i], e.scores_N, atol=1e-5)
        assert found["names"][i] == [CLASSES[label]["name"] for label in e.labels_N]


def registered(logged, tracking, name):
    """A version whose tag has the digest of each file."""
    tags = {FILES_TAG: as_tag(logged_digests(logged[0], tracking=tracking))}
    return register(logged[0], name, tracking=tracking, tags=tags)


def test_the_downloaded_package_is_the_logged_one(tracking, logged, package, tmp_path):
    version = registered(logged, tracking, "served")
    folder = download_package(version, tracking=tracking, folder=str(tmp_path))
    assert folder.startswith(str(tmp_path)) and sorted(os.listdir(folder)) == sorted(
        (*PACKAGE_FILES, THRESHOLDS_FILE)
    )
    assert package_digest(folder) == package_digest(package)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rename_a_class(path):
    path.write_text(path.read_text().replace("platelet", "cell").replace("cell", "platelet", 1))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("model.safetensors", flip_a_bit, "model.safetensors has changed"),
        ("classes.json", rename_a_class, "classes.json has changed"),
        ("code/detector/predict.py", flip_a_bit, "code/detector/predict.py has changed"),
        ("MLmodel", flip_a_bit, "MLmodel has changed"),
        ("python_model.pkl", lambda path: path.write_bytes(b"\x80"), "python_model.pkl was added"),
        ("requirements.txt", lambda path: path.unlink(), "requirements.txt is missing"),
    ],
)
def test_a_version_whose_files_have_changed_is_refused_with_their_names(
    tracking, logged, tmp_path, file, change, said
):
    version = registered(logged, tracking, "changed")
    client = connect(tracking)
    stored = client.get_logged_model(logged[0].removeprefix("models:/")).artifact_location
    shutil.copytree(stored, tmp_path / "kept")
    (path,) = [*Path(stored).rglob(Path(file).name)] or [Path(stored, file)]
    try:
        change(path)
        with pytest.raises(DataError, match=f"models:/changed/.*not those .*registered: .*{said}"):
            download_package(version, tracking=tracking, folder=f"{tmp_path}/changed")
    finally:
        shutil.rmtree(stored)
        shutil.copytree(tmp_path / "kept", stored)
    assert download_package(version, tracking=tracking, folder=f"{tmp_path}/whole")


def test_a_version_of_before_the_digests_of_files_is_verified_by_that_of_the_package(
    tracking, logged, package, tmp_path
):
    tags = {DIGEST_TAG: package_digest(package)}
    version = register(logged[0], "older", tracking=tracking, tags=tags)
    assert download_package(version, tracking=tracking, folder=f"{tmp_path}/one")
    version = register(logged[0], "older", tracking=tracking, tags={DIGEST_TAG: "0" * 64})
    with pytest.raises(DataError, match=r"models:/older/2: its files are not those .*registered"):
        download_package(version, tracking=tracking, folder=f"{tmp_path}/two")


def test_a_model_of_another_project_is_refused(tracking, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {sklearn: {}}")
    client = connect(tracking)
    client.create_registered_model("foreign")

    def said(**tags):
        made = client.create_model_version("foreign", source=str(model), tags=tags)
        version, folder = Version("foreign", int(made.version)), str(tmp_path / "down")
        with pytest.raises(PlainError) as error:
            download_package(version, tracking=tracking, folder=folder)
        return str(error.value)

    assert "models:/foreign/1: has no tag files_sha256" in said()
    assert "has no model.safetensors" in said(files_sha256=as_tag(file_digests(str(model))))
    (model / "MLmodel").write_text(
        "flavors: {python_function: {artifacts: {package: {path: ../elsewhere}}}}"
    )
    outside = said(files_sha256=as_tag(file_digests(str(model))))
    assert "names ../elsewhere, outside of the model" in outside
