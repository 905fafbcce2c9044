"""pipelines/register.py as a command, in this process: its answers, exit codes and what it leaves
in a real SQLite store.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.tracking.client import connect
from cluster.tracking.config import tracking_uri
from cluster.tracking.run import open_run
from detector.checkpoint import seal
from detector.detection_counts import count_detections
from detector.model import RetinaNet
from pipelines.command_line import run_verb
from pipelines.register import RegisterConfig, main

KEYWORDS = {"backbone": "resnet18", "classes": 1, "width": 64}
DETECTED = count_detections(
    ["cell"],
    image_N=np.array([0, 0, 2]),
    labels_N=np.zeros(3),
    scores_N=np.array([0.5, 0.75, 0.25]),
    heights_I=np.full(4, 64),
    widths_I=np.full(4, 64),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def run_folder(root):
    """What train leaves behind: tracking.json, best.json and a checkpoint whose EMA weights were
    the best.
    """
    folder = root / "runs" / "cells"
    checkpoint = folder / "checkpoints" / "images-000000000300"
    checkpoint.mkdir(parents=True)
    for name, seed in (("model", 0), ("ema", 1)):
        torch.manual_seed(seed)
        save_file(
            {k: v.contiguous() for k, v in RetinaNet(**KEYWORDS).state_dict().items()},
            str(checkpoint / f"{name}.safetensors"),
        )
    package = {
        "description": {"model": KEYWORDS, "canvases": [[64, 64]], "decode": {}, "amp": False},
        "classes": [{"label": 0, "id": 1, "name": "cell"}],
    }
    seal(str(checkpoint), {"images_seen": 300, "package": package})
    run = open_run(tracking_uri(None, str(root)), experiment="tests", name="cells")
    # What evaluate leaves of two checkpoints; the second one is the best.
    for step, low in ((200, 0.25), (300, 0.5)):
        run.log_metrics({"evaluation/AP_low": low, "evaluation/AP_high": 0.5625}, step)
    run.finish("FINISHED")
    (folder / "tracking.json").write_text(
        json.dumps({"uri": run.uri, "experiment": "tests", "run_id": run.run_id})
    )
    (folder / "best.json").write_text(
        json.dumps(
            {
                "checkpoint": str(checkpoint),
                "images_seen": 300,
                "epoch": 3,
                "AP": 0.5312,
                "AP50": 0.8614,
                "weights": "ema",
                "detected": DETECTED.to_json(),
            }
        )
    )
    return folder


def type_command(capsys, *argv):
    """(exit code, stdout, stderr)"""
    with pytest.raises(SystemExit) as end:
        run_verb(RegisterConfig, main, description="test", argv=list(argv))
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_best_checkpoint_becomes_the_champion_once(run_folder, root, capsys):
    code, out, err = type_command(capsys, "--run", str(run_folder), "--name", "cells")
    assert code == 0, err
    for said in (
        "models:/cells/1   AP 0.531, AP50 0.861 at 300 images",
        "challenger, champion",
        f"sqlite:///{root}/mlflow.db",
        "best checkpoint so far",
    ):
        assert said in out
    uri = tracking_uri(None, str(root))
    client = connect(uri)
    version = client.get_model_version("cells", "1")
    recorded = json.loads((run_folder / "tracking.json").read_text())
    assert (
        version.run_id == recorded["run_id"]
        and client.get_run(version.run_id).info.status == "FINISHED"
    )
    assert "interval of AP is 0.500 to 0.562 (" in version.description
    assert version.tags["AP"] == "0.5312" and version.tags["run_folder"] == str(run_folder)
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    weights = [
        path for path in root.glob(f"mlartifacts/models/{model.model_id}/**/model.safetensors")
    ]
    assert [path.read_bytes() for path in weights] == [
        (run_folder / "checkpoints/images-000000000300/ema.safetensors").read_bytes()
    ]
    (validation,) = root.glob(f"mlartifacts/models/{model.model_id}/**/validation.json")
    assert json.loads(validation.read_text()) == DETECTED.to_json()

    (run_folder / "finished.json").write_text('{"images_seen": 300, "epochs": 3}')
    code, out, _ = type_command(capsys, "--run", str(run_folder), "--name", "cells")
    assert (
        code == 0 and "models:/cells/1 already holds this checkpoint" in out and "so far" not in out
    )
    assert len(client.search_model_versions("name='cells'")) == 1


@pytest.mark.parametrize("alias", ["challenger", "champion"])
def test_a_registration_that_was_cut_off_before_an_alias_is_finished_by_the_same_command(
    run_folder, root, capsys, monkeypatch, alias
):
    from mlflow import MlflowClient

    whole = MlflowClient.set_registered_model_alias

    def dies(self, name, moved, number):
        if moved == alias:
            raise OSError("the server is gone")
        whole(self, name, moved, number)

    name = f"cut-{alias}"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", dies)
        code, _, err = type_command(capsys, "--run", str(run_folder), "--name", name)
    assert code == 1 and "the server is gone" in err
    code, out, _ = type_command(capsys, "--run", str(run_folder), "--name", name)
    assert code == 0 and "already holds this checkpoint" in out
    assert "aliases  challenger, champion" in out
    client = connect(tracking_uri(None, str(root)))
    assert len(client.search_model_versions(f"name='{name}'")) == 1


def test_a_version_whose_files_have_changed_is_registered_again(run_folder, root, capsys):
    assert type_command(capsys, "--run", str(run_folder), "--name", "damaged")[0] == 0
    client = connect(tracking_uri(None, str(root)))
    model = client.get_model_version("damaged", "1").source.removeprefix("models:/")
    (weights,) = root.glob(f"mlartifacts/models/{model}/**/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, out, _ = type_command(capsys, "--run", str(run_folder), "--name", "damaged")
    assert code == 0 and "models:/damaged/2" in out and "model.safetensors has changed" in out
    code, out, _ = type_command(capsys, "--run", str(run_folder), "--name", "damaged")
    assert code == 0 and "models:/damaged/2 already holds this checkpoint" in out


def test_a_version_without_digests_of_its_files_is_registered_again(run_folder, root, capsys):
    given = ("--run", str(run_folder), "--name", "undigested")
    assert type_command(capsys, *given)[0] == 0
    client = connect(tracking_uri(None, str(root)))
    client.delete_model_version_tag("undigested", "1", "files_sha256")
    code, out, _ = type_command(capsys, *given)
    assert code == 0 and "models:/undigested/2" in out and "has no digests of its files" in out


def test_what_is_wrong_with_the_run_is_one_line_and_code_2(run_folder, tmp_path, capsys):
    code, _, err = type_command(capsys, "--run", str(tmp_path), "--name", "x")
    assert code == 2 and "is not a training run's folder" in err and err.count("\n") == 1
    code, _, err = type_command(capsys, "--run", str(tmp_path / "nothing"), "--name", "x")
    assert code == 2 and "there is no such folder" in err and err.count("\n") == 1
    (tmp_path / "config.json").write_text('{"identity": {}}')
    code, _, err = type_command(capsys, "--run", str(tmp_path), "--name", "x")
    assert code == 2 and "has no evaluated checkpoint yet" in err
    (tmp_path / "best.json").write_text((run_folder / "best.json").read_text())
    code, _, err = type_command(capsys, "--run", str(tmp_path), "--name", "x")
    assert code == 2 and "no tracking.json" in err
    (tmp_path / "tracking.json").write_text(
        json.dumps(
            {
                "uri": tracking_uri(None, str(run_folder.parents[1])),
                "experiment": "tests",
                "run_id": "f" * 32,
            }
        )
    )
    code, _, err = type_command(capsys, "--run", str(tmp_path), "--name", "x")
    assert code == 2 and "has no run" in err
    code, _, err = type_command(capsys, "--run", str(run_folder), "--name", "a/b")
    assert code == 2 and "name" in err


@pytest.mark.parametrize("ap", [-1.0, float("nan"), None])
def test_a_run_whose_best_has_no_score_is_not_registered(run_folder, tmp_path, capsys, ap):
    """A first version would become the champion."""
    for name in ("best.json", "tracking.json"):
        (tmp_path / name).write_text((run_folder / name).read_text())
    best = json.loads((tmp_path / "best.json").read_text()) | {"AP": ap}
    (tmp_path / "best.json").write_text(json.dumps(best))
    code, out, err = type_command(capsys, "--run", str(tmp_path), "--name", "unscored")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert f"{tmp_path}: no evaluation of it has an AP" in err
    client = connect(tracking_uri(None, str(run_folder.parents[1])))
    assert not client.search_registered_models("name = 'unscored'")


def test_the_name_of_a_prompt_is_refused_before_the_package_is_built(
    run_folder, capsys, monkeypatch
):
    from cluster.tracking import register_run

    connect(tracking_uri(None, str(run_folder.parents[1]))).register_prompt("ask", "a {{b}}")
    monkeypatch.setattr(
        register_run, "build_package", lambda *_, **__: pytest.fail("the name is checked first")
    )
    code, _, err = type_command(capsys, "--run", str(run_folder), "--name", "ask")
    assert code == 2 and "name ask: is the name of a prompt" in err and err.count("\n") == 1


def test_dead_server_is_code_1_and_nothing_is_built(run_folder, capsys, monkeypatch):
    from cluster.tracking import register_run

    monkeypatch.setattr(
        register_run, "build_package", lambda *_: pytest.fail("the server is checked first")
    )
    code, _, err = type_command(
        capsys, "--run", str(run_folder), "--name", "x", "--tracking.uri", "http://127.0.0.1:1"
    )
    assert code == 1 and "no MLflow server answers at http://127.0.0.1:1" in err


def test_a_moved_run_is_registered_in_the_store_that_moved_with_it(
    run_folder, root, tmp_path, capsys
):
    shutil.copytree(root, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere/runs/cells"
    code, out, err = type_command(capsys, "--run", str(moved), "--name", "moved")
    assert code == 0, err
    assert "models:/moved/1" in out and f"sqlite:///{tmp_path}/elsewhere/mlflow.db" in out
    client = connect(tracking_uri(None, str(root)))
    assert not client.search_model_versions("name='moved'")


def test_a_registry_elsewhere_and_a_store_that_is_gone_are_one_line_and_code_2(
    run_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry:5000")
    code, _, err = type_command(capsys, "--run", str(run_folder), "--name", "x")
    assert code == 2 and "MLFLOW_REGISTRY_URI names another store" in err and err.count("\n") == 1
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    alone = tmp_path / "runs/cells"
    shutil.copytree(run_folder, alone)
    record = json.loads((alone / "tracking.json").read_text())
    record["uri"] = f"sqlite:///{tmp_path}/gone/mlflow.db"
    (alone / "tracking.json").write_text(json.dumps(record))
    code, _, err = type_command(capsys, "--run", str(alone), "--name", "x")
    assert code == 2 and f"no MLflow store at {tmp_path}/gone/mlflow.db" in err
    assert not (tmp_path / "gone").exists() and err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [([], "neither is given"), (["--run", "a", "--sweep", "b"], "both are given")],
)
def test_a_run_or_a_sweep_is_registered(given, words, capsys):
    with pytest.raises(SystemExit) as end:
        run_verb(RegisterConfig, main, description="", argv=[*given, "--name", "cells"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1
