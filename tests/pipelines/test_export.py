"""export as a command, in this process, against a real SQLite store and real packages."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import detector.export
from cluster.runs.package_files import package_digest
from cluster.shards.index import open_shard_set
from cluster.storage import files
from cluster.tracking.config import tracking_uri
from cluster.tracking.examples import write_examples
from cluster.tracking.file_digests import FILES_TAG, as_tag
from cluster.tracking.logged_package import log_package, logged_digests
from cluster.tracking.promotion import register
from cluster.tracking.registry import DIGEST_TAG
from cluster.tracking.run import open_run
from pipelines.command_line import run_verb
from pipelines.export import ExportConfig, main
from tests.support.packages import make_package

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, small_sets: dict[str, str]) -> Path:
    """A storage root with two versions of `cells`; the second one has no example pictures."""
    root = tmp_path_factory.mktemp("storage")
    package = str(tmp_path_factory.mktemp("package"))
    classes = [category.to_json() for category in open_shard_set(small_sets["val"]).categories]
    make_package(tmp_path_factory.mktemp("checkpoint"), Path(package), classes)
    run = open_run(tracking_uri(None, str(root)), experiment="tests", name="trained")
    write_examples(package, small_sets["val"], str(root / "examples"))
    for examples in (str(root / "examples"), None):
        uri = log_package(run, package, examples=examples)
        digests = as_tag(logged_digests(uri, tracking=run.uri))
        tags = {DIGEST_TAG: package_digest(package), FILES_TAG: digests}
        register(uri, "cells", tracking=run.uri, tags=tags)
    run.finish("FINISHED")
    return root


@pytest.fixture
def typed(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types the verb: (exit code, stdout, stderr)."""

    def run(output: object, model: str = "models:/cells/1", **options: str) -> tuple[int, str, str]:
        options = {"model": model, "output": str(output), **options}
        argv = [word for name, value in options.items() for word in (f"--{name}", value)]
        with pytest.raises(SystemExit) as end:
            run_verb(ExportConfig, main, description="", argv=argv, resumes=False)
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        assert said.err.count("\n") <= 1, "one line"
        return end.value.code, said.out, said.err

    return run


@pytest.mark.integration
def test_a_version_becomes_files_that_are_checked_and_described(
    typed: Typed, store: Path, bucket: str, small_sets: dict[str, str]
):
    options = {"int8": "true", "data": small_sets["val"], "calibration": "3"}
    code, out, err = typed(f"{bucket}/new/cells.onnx", **options, storage=str(store))
    assert code == 0, err
    assert "checked  in onnxruntime: " in out and "detections in 4 pictures differ by" in out
    written = ["cells.int8.onnx", "cells.json", "cells.onnx"]
    assert files.list_names(f"{bucket}/new") == written
    said = files.read_json(f"{bucket}/new/cells.json")
    assert said["model"] == "models:/cells/1" and said["canvases"] == [[64, 96]]
    assert said["thresholds"]["max_detections"] == 5
    for name, file in said["files"].items():
        content = files.read_bytes(f"{bucket}/new/{name}")
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert name in out
    assert said["check"]["detections"] > 0 and said["check"]["box"] < 1e-3
    cost = said["int8"]
    assert cost["AP"]["package"] == pytest.approx(cost["AP"]["float32"], rel=0.05)
    assert cost["AP_loss"] == cost["AP"]["float32"] - cost["AP"]["int8"]
    assert cost["calibration_images"] == 3 and min(cost["ms_an_image"].values()) > 0

    # Every convolution but the two of the heads' outputs, which all five levels share, has
    # 8-bit weights.
    graph = onnx.load_from_string(files.read_bytes(f"{bucket}/new/cells.int8.onnx")).graph
    dequantised = {
        o for node in graph.node if node.op_type == "DequantizeLinear" for o in node.output
    }
    plain = [
        node for node in graph.node if node.op_type == "Conv" and node.input[1] not in dequantised
    ]
    assert len(plain) == 10 and len({node.input[1] for node in plain}) == 2


@pytest.mark.integration
def test_a_file_that_detects_something_else_is_not_written(
    typed: Typed, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = detector.export.export_onnx

    def with_fewer(model, path, *, decode):
        write(model, path, decode={**decode, "max_detections": 4})

    monkeypatch.setattr(detector.export, "export_onnx", with_fewer)
    code, _, err = typed(tmp_path / "cells.onnx", storage=str(store))
    assert code == 1 and err.startswith("error: cells.onnx: 20 detections in 4 pictures differ by")
    assert "so nothing was written" in err and not list(tmp_path.iterdir())


def test_a_version_without_examples_needs_data(typed: Typed, store: Path, tmp_path: Path):
    code, _, err = typed(tmp_path / "cells.onnx", "models:/cells/2", storage=str(store))
    assert code == 2 and "registered without example pictures" in err and "--data" in err


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("cells.onnx", {"int8": "true"}, "int8 true: needs --data"),
        ("cells.onnx", {"calibration": "7"}, "calibration 7: does nothing without --int8 true"),
        ("cells.pt", {}, "output cells.pt: must end with .onnx"),
        ("cells.onnx", {"model": "cells"}, "cells"),
    ],
)
def test_a_mistake_is_one_line(
    typed: Typed, output: str, options: dict[str, str], message: str, tmp_path: Path
):
    code, _, err = typed(output, **{"storage": str(tmp_path), **options})
    assert code == 2 and message in err


def test_a_missing_package_is_named_before_anything_is_done(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    code, _, err = typed(tmp_path / "cells.onnx", storage=str(tmp_path / "nothing"))
    assert (code, err) == (
        2,
        "error: export: package onnxruntime missing; pip install onnx onnxscript onnxruntime\n",
    )
    assert not list(tmp_path.iterdir())
