"""cluster/tracking/registry.py and the packaged pyfunc against a real SQLite store; the network is
the smallest that detector/ builds, untrained.
"""

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
from safetensors.torch import save_file

from cluster.errors import DataError, PlainError, UsageError
from cluster.runs.package_files import PACKAGE_FILES, build_package, package_digest
from cluster.tracking.client import connect
from cluster.tracking.config import tracking_uri
from cluster.tracking.logged_package import download_package, log_package
from cluster.tracking.registry import (
    DIGEST_TAG,
    Version,
    aliases,
    find_package,
    promote,
    register,
    resolve,
)
from cluster.tracking.run import open_run
from detector.checkpoint import seal
from detector.model import RetinaNet
from detector.predict import Predictor

CLASSES = [{"label": 0, "id": 7, "name": "cell"}, {"label": 1, "id": 9, "name": "platelet"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def tracking(root):
    return tracking_uri(None, root)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package whose network, untrained with a prior of 0.5, finds something everywhere."""
    torch.manual_seed(0)
    keywords = {"backbone": "resnet18", "classes": 2, "width": 64, "prior": 0.5}
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    save_file(
        {k: v.contiguous() for k, v in RetinaNet(**keywords).state_dict().items()},
        str(checkpoint / "model.safetensors"),
    )
    decode = {
        "score_threshold": 0.05,
        "top_per_level": 10,
        "nms_threshold": 0.5,
        "max_detections": 5,
    }
    description = {"model": keywords, "canvases": [[64, 96]], "decode": decode, "amp": False}
    seal(str(checkpoint), {"package": {"description": description, "classes": CLASSES}})
    folder = str(tmp_path_factory.mktemp("package"))
    build_package(str(checkpoint), folder)
    return folder


@pytest.fixture(scope="module")
def logged(root, tracking, package):
    """(URI of the logged model, id of its MLflow run)"""
    run = open_run(tracking, experiment="tests", storage=root, name="trained")
    run.log_metrics({"AP": 0.5}, 300)
    model_uri = log_package(run, package, step=300)
    run.finish("FINISHED")
    return model_uri, run.run_id


def picture(seed, format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=format)
    return pixels, file.getvalue()


def test_package_is_the_weights_and_description_of_the_checkpoint(package):
    assert sorted(os.listdir(package)) == ["classes.json", "model.json", "model.safetensors"]
    with open(f"{package}/classes.json", encoding="utf-8") as file:
        assert json.load(file) == CLASSES


def test_package_takes_the_weights_that_best_names(tmp_path):
    for name, value in (("model", 1.0), ("ema", 2.0)):
        save_file({"x": torch.full((1,), value)}, str(tmp_path / f"{name}.safetensors"))
    description = {"model": {"classes": 1}, "canvases": [], "decode": {}, "amp": False}
    seal(str(tmp_path), {"package": {"description": description, "classes": []}})
    digests = []
    for weights in ("model", "ema"):
        build_package(str(tmp_path), str(tmp_path / f"from-{weights}"), weights=weights)
        assert (tmp_path / f"from-{weights}" / "model.safetensors").read_bytes() == (
            tmp_path / f"{weights}.safetensors"
        ).read_bytes()
        digests.append(package_digest(str(tmp_path / f"from-{weights}")))
    assert digests[0] != digests[1] == package_digest(str(tmp_path / "from-ema"))
    save_file({"x": torch.full((1,), 3.0)}, str(tmp_path / "ema.safetensors"))
    with pytest.raises(DataError, match="ema.safetensors: is damaged"):
        build_package(str(tmp_path), str(tmp_path / "x"), weights="ema")
    (tmp_path / "ema.safetensors").unlink()
    with pytest.raises(UsageError, match="not complete"):
        build_package(str(tmp_path), str(tmp_path / "x"), weights="ema")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["model"].update(depth=18), "model.depth is not known"),
        (lambda d: d["model"].pop("classes"), "model.classes is missing"),
        (
            lambda d: d["model"].update(norm="layer"),
            "model.norm 'layer': must be one of batch, sync, frozen, group",
        ),
        (lambda d: d["decode"].update(nms=0.5), "decode.nms is not known"),
        (lambda d: d.pop("canvases"), "canvases is missing"),
        (lambda d: d.update(canvas=[64, 96]), "canvas is not known"),
    ],
)
def test_a_package_of_another_version_is_refused_by_the_name_of_the_field(
    package, tmp_path, change, said
):
    description = json.loads(Path(package, "model.json").read_text())
    shutil.copytree(package, tmp_path, dirs_exist_ok=True)
    change(description)
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(
        ValueError,
        match=(
            f"model.json: {said}; it was written by another version of this code: use that"
            " version, or"
        ),
    ):
        Predictor.load(str(tmp_path))
    # From a run's checkpoint, before anything is scored or registered.
    seal(str(tmp_path), {"package": {"description": description, "classes": CLASSES}})
    with pytest.raises(UsageError, match=f"state.json: model.json: {said}"):
        build_package(str(tmp_path), str(tmp_path / "package"))


def test_a_package_from_before_the_bound_on_the_long_side_has_none(package):
    assert (
        "long_side" not in json.loads(Path(package, "model.json").read_text())
        and Predictor.load(package).long_side is None
    )


def test_model_says_what_it_takes_gives_and_needs(tracking, logged, root):
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
    assert signature.outputs.input_names() == ["boxes", "scores", "labels", "names"]


def test_model_loads_elsewhere_without_pickle_and_finds_what_the_predictor_finds(
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
    (tmp_path / "use.py").write_text(
        "import json, sys, mlflow, pandas as pd\nmodel ="
        " mlflow.pyfunc.load_model(sys.argv[1])\nimages = [open(f'{i}.png', 'rb').read() for i in"
        " range(9)]\nfound = model.predict(pd.DataFrame({'image': images}))\nsaid = []\nfor broken"
        " in (b'GIF, or not', open('cut.jpg', 'rb').read()):\n    try:"
        " model.predict(pd.DataFrame({'image': [images[0], broken], 'image_id': ['fine',"
        " 'broken-17']}))\n    except mlflow.MlflowException as error:"
        " said.append([error.error_code, str(error)])\nimport"
        " detector.predict\nprint(json.dumps([found.to_dict('list'), said,"
        " detector.predict.__file__]))\n"
    )
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
    found, said, code = json.loads(used.stdout.splitlines()[-1])
    assert code == f"{folder}/code/detector/predict.py"
    assert [kind for kind, _ in said] == ["INVALID_PARAMETER_VALUE"] * 2
    assert all("image_id 'broken-17': it cannot be decoded" in text for _, text in said)

    expected = Predictor.load(package)([pixels for pixels, _ in pictures])
    assert sum(len(e.scores_N) for e in expected) > 0 and len(found["boxes"]) == 9
    for i, e in enumerate(expected):
        assert found["labels"][i] == e.labels_N.tolist()
        np.testing.assert_allclose(
            np.array(found["boxes"][i]).reshape(-1, 4), e.boxes_N4, atol=1e-3
        )
        np.testing.assert_allclose(found["scores"][i], e.scores_N, atol=1e-5)
        assert found["names"][i] == [CLASSES[label]["name"] for label in e.labels_N]


def test_versions_aliases_promotion_and_the_way_back(tracking, logged):
    one = register(logged[0], "cells", tracking=tracking, tags={"AP": 0.5, DIGEST_TAG: "aaa"})
    assert one == Version("cells", 1) and aliases(one, tracking=tracking) == [
        "challenger",
        "champion",
    ]
    two = register(logged[0], "cells", tracking=tracking, tags={DIGEST_TAG: "bbb"})
    assert aliases(one, tracking=tracking) == ["champion"] and aliases(two, tracking=tracking) == [
        "challenger"
    ]
    client = connect(tracking)
    stored = client.get_model_version("cells", "1")
    assert stored.tags["AP"] == "0.5" and stored.run_id == logged[1] and stored.source == logged[0]
    linked = json.loads(
        client.get_logged_model(logged[0].removeprefix("models:/")).tags["mlflow.modelVersions"]
    )
    assert {"name": "cells", "version": 1} in linked and {"name": "cells", "version": 2} in linked
    assert (
        find_package("bbb", "cells", tracking=tracking) == two
        and find_package("ccc", "cells", tracking=tracking) is None
    )

    promote(two, reason="AP 0.6 against 0.5", tracking=tracking)
    assert (
        resolve("models:/cells@champion", tracking=tracking) == two
        and resolve("models:/cells@previous", tracking=tracking) == one
    )
    promote(two, reason="again", tracking=tracking)
    assert resolve("models:/cells@previous", tracking=tracking) == one
    promote(
        resolve("models:/cells@previous", tracking=tracking), reason="roll back", tracking=tracking
    )
    assert (
        resolve("models:/cells@champion", tracking=tracking) == one
        and resolve("models:/cells@previous", tracking=tracking) == two
    )
    tags = client.get_registered_model("cells").tags
    audit = [json.loads(tags[key]) for key in sorted(tags) if key.startswith("promotion.")]
    assert [(entry["from"], entry["to"], entry["reason"]) for entry in audit] == [
        (None, 1, "the first version"),
        (1, 2, "AP 0.6 against 0.5"),
        (2, 1, "roll back"),
    ]


def test_unknown_names_aliases_and_versions_say_what_there_is(tracking, logged):
    version = register(logged[0], "known", tracking=tracking)
    assert resolve("models:/known/1", tracking=tracking) == version
    for uri, said in (
        ("models:/unknown@champion", "no model 'unknown' .*there are .*known"),
        ("models:/known@best", "no alias 'best'; there are challenger, champion"),
        ("models:/known/4", "no version 4; there are 1"),
        ("models:/known", "models:/NAME@champion or models:/NAME/3"),
        ("runs:/known/1", "models:/NAME@champion or models:/NAME/3"),
    ):
        with pytest.raises(UsageError, match=said):
            resolve(uri, tracking=tracking)
    with pytest.raises(UsageError, match="no version 9"):
        promote(Version("known", 9), reason="a typing error", tracking=tracking)


def test_download_gives_the_package_that_was_logged(tracking, logged, package, tmp_path):
    version = register(logged[0], "served", tracking=tracking)
    folder = download_package(version, tracking=tracking, folder=str(tmp_path))
    assert folder.startswith(str(tmp_path)) and sorted(os.listdir(folder)) == sorted(PACKAGE_FILES)
    assert package_digest(folder) == package_digest(package)


def test_a_model_of_somebody_else_is_not_taken_for_a_package(tracking, tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {}}")
    client = connect(tracking)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", source=str(tmp_path))
    with pytest.raises(PlainError, match="models:/foreign/1 has no model.safetensors"):
        download_package(Version("foreign", 1), tracking=tracking, folder=str(tmp_path / "down"))


def test_the_tracking_address_of_the_process_stays_as_it_was(tracking, logged, monkeypatch):
    import mlflow

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
        assert aliases(register(logged[0], "quiet", tracking=tracking), tracking=tracking)
        assert (
            mlflow.get_tracking_uri()
            == os.environ["MLFLOW_TRACKING_URI"]
            == "http://elsewhere:5000"
        )
    mlflow.set_tracking_uri(None)
