"""`evaluate` and its MLflow run: what it needs before it starts, and what is left where the store
is lost while it works. The detector itself is not run here.
"""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.compute.session import RayConfig
from cluster.errors import PlainError, UsageError
from cluster.prediction import pool
from cluster.prediction import predict as prediction
from cluster.prediction.summary import Summary
from cluster.runs import package_files, run_folder
from cluster.runs.package_files import write_thresholds
from cluster.scoring.evaluate_package import Wanted
from cluster.tracking import embedded
from cluster.tracking.client import connect
from cluster.tracking.config import TrackingConfig
from cluster.tracking.evaluation import Subject
from cluster.tracking.registry import Version
from cluster.tracking.run import Run, open_run
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.metrics import CocoTable
from detector.operating_points import OperatingPoint, Thresholds
from pipelines import (
    comparison_run,
    evaluation_run,
    scored_detector,
    scoring_inputs,
    scoring_run,
)
from pipelines.command_line import parse, run_verb
from pipelines.data_section import DataSection
from pipelines.evaluate import EvaluateConfig, main
from pipelines.evaluation_set import evaluation_set
from pipelines.predict import PredictConfig
from pipelines.worker_range import worker_range
from tests.support.predicting import InProcess, write_package, write_pictures
from tests.support.shard_sets import row, write_set

TABLE = CocoTable(
    {"AP": 0.25, "AP50": 0.5, "AP_small": None},
    {"cat": {"objects": 1.0, "AP": 0.25}, "dog": {"objects": 0.0, "AP": None}},
    np.zeros((101, 2)),
    1,
    3,
)
CLASSES = [{"label": 0, "id": 3, "name": "cat"}, {"label": 1, "id": 18, "name": "dog"}]


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens to the store after the preflight, while the images are scored."""
    events: list[Callable[[], object]] = []

    def build(checkpoint: str, folder: str, **_: Any) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / package_files.CLASSES_FILE).write_text(json.dumps(CLASSES))

    def evaluate(
        _package: str, _set: Any, _classes: Any, folder: str, *, wanted: Wanted, **_: Any
    ) -> Any:
        (Path(folder) / "overlays").mkdir(parents=True)
        for number in range(wanted.overlays):
            (Path(folder) / f"overlays/{number}.png").write_bytes(b"png")
        (Path(folder) / "metrics.json").write_text(json.dumps(TABLE.as_dict()))
        (Path(folder) / "table.txt").write_text(TABLE.as_text())
        (Path(folder) / "precision_recall.png").write_bytes(b"png")
        for event in events:
            event()
        return TABLE, []

    monkeypatch.setattr(scored_detector, "build_package", build)
    monkeypatch.setattr(evaluation_run, "evaluate_package", evaluate)
    monkeypatch.setattr(evaluation_run, "connect_for", lambda *_: None)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return events


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An SQLite store, which takes seconds to make, and the id of the run in it."""
    root = tmp_path_factory.mktemp("storage")
    run = open_run(f"sqlite:///{root}/mlflow.db", experiment="tests", name="cells")
    run.finish("FINISHED")
    return root / "mlflow.db", run.run_id


@pytest.fixture
def given(tmp_path: Path, recorded: tuple[Path, str]) -> Path:
    """A run's folder with a best checkpoint, a shard set, and an MLflow run in a store of its
    own.
    """
    val = write_set(str(tmp_path / "val"), [[row(1, 1)]])
    folder = tmp_path / "runs/cells"
    claim = run_folder.Claim({"data": {"val": val.digest}}, {}, "uuid")
    run_folder.write(str(folder), "config.json", claim.to_json())
    best = {"checkpoint": "/c", "images_seen": 300, "epoch": 3, "AP": 0.5, "AP50": 0.75}
    run_folder.write(str(folder), "best.json", best)
    store, run_id = recorded
    shutil.copyfile(store, tmp_path / "mlflow.db")
    embedded.follow_move(str(tmp_path / "mlflow.db"))
    record(folder, f"sqlite:///{tmp_path}/mlflow.db", run_id)
    return tmp_path


def record(folder: Path, uri: str, run_id: str) -> None:
    run_folder.write_tracking(str(folder), run_folder.TrackingRecord(uri, "tests", run_id))


def type_command(given: Path, capsys: Any, *more: str) -> tuple[Any, str, str]:
    """(exit code, stdout, stderr)"""
    words = ["--run", str(given / "runs/cells"), "--data", str(given / "val")]
    # What making the folder said.
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_verb(
            EvaluateConfig,
            main,
            description="test",
            argv=[*words, "--output", str(given / "out"), *more],
        )
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_the_scores_that_exist_are_in_the_run(
    given: Path, lost: list[Callable[[], object]], capsys: Any
) -> None:
    code, out, err = type_command(given, capsys)
    assert code == 0 and "note" not in out and err == ""
    stored = run_folder.read_tracking(str(given / "runs/cells"))
    assert stored is not None
    data = connect(stored.uri).get_run(stored.run_id).data
    assert data.metrics == {"evaluation/AP": 0.25, "evaluation/AP50": 0.5}
    assert json.loads((given / "out/metrics.json").read_text())["AP_small"] is None


def test_every_other_evaluation_has_a_name_of_its_own(
    given: Path,
    lost: list[Callable[[], object]],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders: set[str] = set()
    views: list[ViewSettings] = []
    evaluate_package = evaluation_run.evaluate_package

    def evaluate(*arguments: Any, **options: Any) -> Any:
        views.append(options["views"])
        return evaluate_package(*arguments, **options)

    monkeypatch.setattr(evaluation_run, "evaluate_package", evaluate)
    monkeypatch.setattr(
        Run,
        "log_artifact",
        lambda run, path, folder: folders.add(folder.removesuffix("/overlays")),
    )
    write_set(str(given / "test"), [[row(1, 1), row(2, 2)]])
    (given / "same.yaml").write_text("cat: cat\n")
    (given / "dog.yaml").write_text("cat:\n")
    test = ["--data", str(given / "test")]
    names = []
    for more in (
        ["--classes", str(given / "same.yaml"), "--overlays", "0"],
        test,
        ["--max_detections", "7"],
        [*test, "--max_detections", "7"],
        ["--classes", str(given / "dog.yaml")],
        test,
        ["--tile", "64", "--flip", "true"],
    ):
        code, out, err = type_command(given, capsys, *more)
        assert code == 0 and err == ""
        found = re.search(r"^note     named (\S+) in MLflow; its tag says what", out, re.MULTILINE)
        names.append(found[1] if found else "evaluation")
    assert len(set(names)) == 6 and names[0] == "evaluation" and names[1] == names[5]
    assert all(re.fullmatch("evaluation-[0-9a-f]{8}", name) for name in names[1:])
    stored = run_folder.read_tracking(str(given / "runs/cells"))
    assert stored is not None
    data = connect(stored.uri).get_run(stored.run_id).data
    assert {key.removesuffix("/AP50") for key in data.metrics if "50" in key} == set(names)
    assert folders == set(names)
    of_test = json.loads(data.tags[names[3]])
    assert of_test["data"] == str(given / "test") and of_test["max_detections"] == 7
    assert json.loads(data.tags[names[4]])["classes"] == {"cat": ""}
    tiled = json.loads(data.tags[names[6]])
    assert {key: tiled[key] for key in ("tile", "overlap", "flip")} == {
        "tile": 64,
        "overlap": 0.2,
        "flip": True,
    }
    assert views == [WHOLE_PICTURE] * 6 + [ViewSettings(64, 0.2, True)]


def test_other_settings_have_another_folder_in_that_of_the_run() -> None:
    usual = Subject("val", "0123456789abcdef")
    limited, partly = replace(usual, max_detections=7), replace(usual, classes={"cat": ""})
    tiled, spread, flipped = (
        replace(usual, views=views)
        for views in (ViewSettings(512), ViewSettings(512, 0.3), ViewSettings(flip=True))
    )
    assert usual.folder == "0123456789ab"
    others = {each.folder for each in (limited, partly, tiled, spread, flipped)}
    assert len({usual.folder, *others}) == 6
    assert replace(limited, data="elsewhere").folder == limited.folder
    assert re.fullmatch("0123456789ab-[0-9a-f]{8}", limited.folder)


def test_overlays_are_named_where_some_are_drawn(
    given: Path, lost: list[Callable[[], object]], capsys: Any
) -> None:
    for count, last in (("0", "table.txt"), ("1", "table.txt, overlays/")):
        _, out, _ = type_command(given, capsys, "--overlays", count)
        assert f"{given}/out: metrics.json, precision_recall.png, {last}\n" in out


def test_a_store_that_is_lost_meanwhile_costs_a_note_and_no_result(
    given: Path, lost: list[Callable[[], object]], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow tries again for 11 s to open a file that is no database.
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    lost.append(lambda: (given / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"x" * 9000))
    check_lost(given, capsys, f"sqlite:///{given}/mlflow.db")


class Mlflow(http.server.BaseHTTPRequestHandler):
    """Answers the preflight as a server that has the run."""

    def do_GET(self) -> None:
        run = {"run": {"info": {"lifecycle_stage": "active"}}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"OK" if self.path == "/health" else json.dumps(run).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mlflow)
    threading.Thread(
        target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    yield served
    served.shutdown()
    served.server_close()


def test_a_server_that_dies_meanwhile_costs_a_note_and_no_result(
    given: Path,
    lost: list[Callable[[], object]],
    capsys: Any,
    server: http.server.ThreadingHTTPServer,
) -> None:
    uri = f"http://127.0.0.1:{server.server_address[1]}"
    record(given / "runs/cells", uri, "a" * 32)
    lost.append(server.shutdown)
    lost.append(server.server_close)
    check_lost(given, capsys, uri)


def check_lost(given: Path, capsys: Any, uri: str) -> None:
    code, out, _ = type_command(given, capsys)
    assert code == 0
    assert {path.name for path in (given / "out").iterdir()} >= {"metrics.json", "table.txt"}
    lines = out.splitlines()
    assert lines[1].split() == ["AP", "0.2500"]
    (note,) = [line for line in lines if line.startswith("note")]
    assert note.startswith(f"note     not in MLflow ({uri}): ")
    assert lines[-2].startswith(f"written  {given}/out: metrics.json")
    assert lines[-1].startswith(f"next     retinaray register --run {given}/runs/cells ")


def test_a_dead_server_is_told_first_and_the_table_is_made(
    given: Path,
    lost: list[Callable[[], object]],
    capsys: Any,
    server: http.server.ThreadingHTTPServer,
) -> None:
    server.shutdown()
    server.server_close()
    record(given / "runs/cells", f"http://127.0.0.1:{server.server_address[1]}", "a" * 32)
    code, out, err = type_command(given, capsys)
    assert code == 0 and err == ""
    first = out.splitlines()[0]
    assert (
        first.startswith("note: the evaluation is not recorded: ")
        and "no MLflow server answers" in first
    )
    assert (given / "out/table.txt").exists()


def test_a_run_that_mlflow_has_no_more_is_told_first_and_the_table_is_made(
    given: Path, lost: list[Callable[[], object]], capsys: Any
) -> None:
    stored = run_folder.read_tracking(str(given / "runs/cells"))
    assert stored is not None
    connect(stored.uri).delete_run(stored.run_id)
    code, out, err = type_command(given, capsys)
    assert code == 0 and err == ""
    assert out.startswith("note: the evaluation is not recorded: MLflow at sqlite:///")
    assert f"mlflow runs restore --run-id {stored.run_id}" in out.splitlines()[0]
    assert (given / "out/table.txt").exists()


def test_pictures_that_the_annotations_do_not_name_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"")
    names = {"images": [{"id": 4, "file_name": "b.jpg"}], "categories": []}
    (tmp_path / "some.json").write_text(json.dumps(names))
    taken: dict[str, Any] = {}
    monkeypatch.setattr(scoring_run, "predict_images", lambda *_, **options: taken.update(options))
    scoring_run.predict_run(
        "models:/cells/1",
        f"{tmp_path}/images",
        annotations=f"{tmp_path}/some.json",
        output=f"{tmp_path}/out",
        **predict_options(tmp_path),
    )
    assert taken["ids"] == {f"{tmp_path}/images/b.jpg": 4}
    assert taken["notes"] == [
        "2 pictures are not named in the annotations, so coco_results.json lacks them (such as"
        f" {tmp_path}/images/a.jpg)"
    ]


def predict_options(tmp_path: Path) -> Any:
    return {
        "overlays": 0,
        "replicas": scoring_inputs.Replicas(1, 1, 0),
        "ray": RayConfig(),
        "tracking": TrackingConfig(),
        "storage": str(tmp_path),
    }


def test_the_result_of_a_prediction_names_reasons_and_reuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = write_package(tmp_path / "package")
    workers = InProcess()
    monkeypatch.setattr(pool, "run_parts", workers)
    monkeypatch.setattr(scoring_run, "connect_for", lambda *_: None)
    found = (Version("cells", 3), "sqlite:///db")
    monkeypatch.setattr(scoring_run, "find_model", lambda *_: found)
    monkeypatch.setattr(scoring_run, "download_package", lambda *_, **__: str(package))
    write_pictures(tmp_path / "images", 3)
    (tmp_path / "images/b.jpg").write_bytes(b"")

    def lines() -> list[str]:
        options = predict_options(tmp_path)
        done = scoring_run.predict_run(
            "models:/cells@champion", f"{tmp_path}/images", output=f"{tmp_path}/out", **options
        )
        return done.lines()

    wanted = [
        "model    models:/cells/3 in sqlite:///db",
        "images   4: 3 predicted, 1 could not be read",
        f"         1 x empty, such as {tmp_path}/images/b.jpg",
        f"         {tmp_path}/images/b.jpg: the file is empty",
        "drift    not known: the package does not say what the model detected in validation",
    ]
    files = f"{tmp_path}/out: predictions.parquet, coco_results.json"
    page = f"see it   {tmp_path}/out/summary.html"
    assert lines() == [*wanted, f"written  {files}", page]
    assert lines() == [*wanted, f"reused   {files}", page]
    assert workers.parts == [0]


@pytest.mark.parametrize(
    ("ok", "drift", "line"),
    [
        (90, [], "none"),
        (9, [], "none that could be told from 9 and 90 images"),
        (90, ["class a: 0.2 detections an image, 4.1 in validation"], None),
        (90, ["first", "second", "third"], "first; and 2 more, see the page"),
    ],
)
def test_drift_is_one_line(ok: int, drift: list[str], line: str | None) -> None:
    summary = Summary("models:/cells/3", images=ok, ok=ok, drift=drift, validation_images=90)
    done = scoring_run.Predicted(prediction.Predicted(summary, "/out", 0, reused=False), "store")
    assert f"drift    {line or drift[0]}" in done.lines()


def test_thresholds_are_those_of_the_package_or_of_a_file(tmp_path: Path) -> None:
    package = tmp_path / "package"
    write_package(package)
    find = scoring_run.find_thresholds
    assert find("none", str(package), "models:/cells/1") is None
    with pytest.raises(UsageError, match="--thresholds f1: models:/cells/1 has none"):
        find("f1", str(package), "models:/cells/1")
    stored = Thresholds(0.9, 0.5, {"cell": OperatingPoint(0.5, 0.9, 0.5, 0.6), "x": None})
    write_thresholds(str(package), stored)
    assert find("f1", str(package), "models:/cells/1") == stored
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(stored.to_json()))
    assert find(str(file), str(package), "models:/cells/1") == stored
    file.write_text(json.dumps({**stored.to_json(), "classes": {"dog": None}}))
    with pytest.raises(UsageError, match="has the classes dog, the model models:/cells/1 has cell"):
        find(str(file), str(package), "models:/cells/1")
    for damaged in ("{}", "[]", '{"version": 1}', "{"):
        file.write_text(damaged)
        with pytest.raises(PlainError, match="mine.json"):
            find(str(file), str(package), "models:/cells/1")
    for wrong in (str(tmp_path / "nothing.json"), str(tmp_path), "F1"):
        with pytest.raises(UsageError, match=f"--thresholds {wrong}: is neither none nor f1"):
            find(wrong, str(package), "models:/cells/1")


def test_no_drawing_of_former_results_stays(tmp_path: Path) -> None:
    for folder, names in (
        ("old", ["overlays/1.png", "gone.html"]),
        ("new", ["overlays/2.png"]),
    ):
        for name in [*names, "done.json"]:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(folder)
    (tmp_path / "old/mine.txt").write_text("mine")
    evaluation_run.replace_results(
        f"{tmp_path}/new", f"{tmp_path}/old", last="done.json", parts=("overlays/", "gone.html")
    )
    left = {
        path.relative_to(tmp_path / "old").as_posix(): path.read_text()
        for path in (tmp_path / "old").rglob("*")
        if path.is_file()
    }
    assert left == {"overlays/2.png": "new", "done.json": "new", "mine.txt": "mine"}


def test_results_that_are_cut_off_do_not_pass_for_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        for name in ("page.html", "done.json"):
            (tmp_path / folder / name).write_text(folder)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("cluster.storage.files.write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        evaluation_run.replace_results(f"{tmp_path}/new", f"{tmp_path}/old", last="done.json")
    assert not (tmp_path / "old/done.json").exists()


def test_a_checkpoint_of_the_run_is_scored_under_a_name_of_its_own(
    given: Path, lost: list[Callable[[], object]], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, str]] = []
    build = scored_detector.build_package

    def build_package(checkpoint: str, folder: str, *, weights: Any) -> None:
        built.append((checkpoint, weights))
        build(checkpoint, folder, weights=weights)

    monkeypatch.setattr(scored_detector, "build_package", build_package)
    checkpoint = given / "runs/cells/checkpoints/images-000000000200"
    said = f"error: run {checkpoint}: there is no such folder; the run {given}/runs/cells has none"
    assert said in type_command(given, capsys, "--run", str(checkpoint))[2]
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    code, out, _ = type_command(given, capsys, "--run", str(checkpoint))
    assert code == 0 and f"scored   {checkpoint}\n" in out
    (checkpoint / "ema.safetensors").write_bytes(b"")
    assert type_command(given, capsys, "--run", f"{checkpoint}/")[0] == 0
    assert built == [(str(checkpoint), "model"), (str(checkpoint), "ema")]
    stored = run_folder.read_tracking(str(given / "runs/cells"))
    assert stored is not None
    data = connect(stored.uri).get_run(stored.run_id).data
    (name,) = [key.removesuffix("/AP50") for key in data.metrics if "50" in key]
    assert name != "evaluation"
    assert json.loads(data.tags[name])["checkpoint"] == "images-000000000200"


def test_an_evaluation_of_a_registered_version_is_in_the_run_that_it_comes_from(
    given: Path, lost: list[Callable[[], object]], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = run_folder.read_tracking(str(given / "runs/cells"))
    assert stored is not None
    found = (Version("cells", 3), stored.uri)
    monkeypatch.setattr(scored_detector, "find_model", lambda *_: found)
    monkeypatch.setattr(scored_detector, "source_of", lambda *_, **__: (stored.run_id, 300))

    def download(_version: Version, *, tracking: str, folder: str) -> str:
        scored_detector.build_package("", f"{folder}/package", weights="model")
        return f"{folder}/package"

    monkeypatch.setattr(scored_detector, "download_package", download)
    words = ["--model", "models:/cells@champion", "--data", str(given / "val")]
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_verb(
            EvaluateConfig, main, description="", argv=[*words, "--output", str(given / "out")]
        )
    out = capsys.readouterr().out
    assert end.value.code == 0 and f"scored   models:/cells/3 in {stored.uri}\n" in out
    data = connect(stored.uri).get_run(stored.run_id).data
    (name,) = [key.removesuffix("/AP50") for key in data.metrics if "50" in key]
    assert re.fullmatch("evaluation-[0-9a-f]{8}", name)
    assert json.loads(data.tags[name])["models"] == ["models:/cells/3"]


def test_comparisons_are_in_the_run_of_the_first_each_under_a_name_of_its_own(
    given: Path, lost: list[Callable[[], object]], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {
        "AP": {"first": 0.5, "second": 0.25, "difference": -0.25, "low": -0.375, "high": -0.125},
        "AP_small": {"first": None, "second": None},
    }

    def compare_packages(*arguments: Any, **_: Any) -> list[str]:
        folder = Path(arguments[3])
        folder.mkdir()
        (folder / "comparison.json").write_text(json.dumps({"numbers": numbers}))
        (folder / "comparison.html").write_text("a page")
        return ["second is worse"]

    logged: set[str] = set()
    monkeypatch.setattr(
        Run, "log_artifact", lambda run, path, folder: logged.add(f"{folder}/{Path(path).name}")
    )
    monkeypatch.setattr(comparison_run, "compare_packages", compare_packages)
    monkeypatch.setattr(comparison_run, "connect_for", lambda *_: None)
    shutil.copytree(given / "runs/cells", given / "runs/dogs")
    best = {"checkpoint": "/d", "images_seen": 300, "epoch": 3, "AP": 0.5, "AP50": 0.75}
    run_folder.write(str(given / "runs/dogs"), "best.json", best)
    write_set(str(given / "test"), [[row(1, 1), row(2, 2)]])
    names = []
    for pair, data in (
        (("cells", "dogs"), "val"),
        (("cells", "dogs"), "test"),
        (("cells",) * 2, "val"),
    ):
        words = ["--compare", *(str(given / "runs" / name) for name in pair)]
        words += ["--data", str(given / data), "--output", str(given / "compared")]
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_verb(EvaluateConfig, main, description="", argv=words)
        out, err = capsys.readouterr()
        assert end.value.code == 0 and "second is worse" in out, err
        found = re.search(r"^note     named (comparison-[0-9a-f]{8}) in MLflow", out, re.MULTILINE)
        assert found is not None, out
        names.append(found[1])
    assert len(set(names)) == 3
    stored = run_folder.read_tracking(str(given / "runs/cells"))
    assert stored is not None
    data = connect(stored.uri).get_run(stored.run_id).data
    wanted = {f"{name}/AP/{part}": value for name in names for part, value in numbers["AP"].items()}
    assert data.metrics == wanted
    assert json.loads(data.tags[names[1]])["data"] == str(given / "test")
    assert logged == {
        f"{name}/{file}" for name in names for file in ("comparison.html", "comparison.json")
    }


def test_annotated_images_become_a_set_once_and_again_when_they_change(
    small_coco: Path, ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = tmp_path / "val.json"
    shutil.copyfile(small_coco / "annotations/instances_val.json", annotations)
    images = str(small_coco / "images/val")
    section = DataSection(annotations=str(annotations), images=images)

    def made() -> tuple[str, str, int]:
        found = evaluation_set(section, str(tmp_path / "out"), RayConfig())
        return found.uri, found.digest, found.num_rows

    first = made()
    assert first[0].startswith(f"{tmp_path}/out/data/") and first[2] == 8
    assert "reusing" not in capsys.readouterr().out
    assert made() == first and "reusing the shard set" in capsys.readouterr().out
    content = json.loads(annotations.read_text())
    content["annotations"].pop()
    annotations.write_text(json.dumps(content))
    changed = made()
    assert changed[0] != first[0] and changed[1] != first[1]
    content["annotations"] = []
    annotations.write_text(json.dumps(content))
    with pytest.raises(PlainError, match="such options are those of prepare; make the set with it"):
        made()


def test_what_compare_and_slices_need_is_said_before_anything_is_read(
    given: Path, capsys: Any
) -> None:
    def refused(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_verb(
                EvaluateConfig,
                main,
                description="test",
                argv=[*words, "--data", str(given / "val")],
            )
        assert end.value.code == 2
        return capsys.readouterr().err

    output = ("--output", str(given / "out"))
    assert "--compare with two of them" in refused(*output)
    assert "--compare takes two detectors, not 1" in refused("--compare", "a", *output)
    assert "--compare takes two detectors, not 3" in refused("--compare", "a", "b", "c", *output)
    assert "--compare needs --output" in refused("--compare", "a", "b")
    said = refused("--compare", "a", "b", "--slices", "source", *output)
    assert "--slices does nothing with --compare" in said
    run = ("--run", str(given / "runs/cells"), *output)
    said = refused(*run, "--slices", "source", "camera")
    assert "--slices camera: is no column of" in said and "file_name, height, width" in said
    assert "a: there is no such folder" in refused("--compare", "a", "b", *output)
    near = str(given / "runs/cels")
    assert "did you mean cells? there are cells in" in refused("--compare", near, "b", *output)
    twice = (*run, "--annotations", str(given / "val.json"))
    assert "data and annotations: both are given; give one, --data for a shard set" in refused(
        *twice
    )
    assert "--images does nothing without --annotations" in refused(*run, "--images", "val")


def test_a_request_without_room_for_reading_is_refused_with_the_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2 x (1 + 0.25) = 2.5 CPUs of 2."""
    monkeypatch.setattr(scoring_inputs.session, "connect", lambda *_, **__: None)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    said = (
        r"^workers 2 x \(cpus_per_worker 1 \+ 0.25 for reading\) needs 2.5 CPUs, the cluster has 2;"
    )
    with pytest.raises(UsageError, match=said) as refused:
        scoring_inputs.connect_for(scoring_inputs.Replicas(2, 1, 0), RayConfig())
    assert refused.value.exit_code == 2
    scoring_inputs.connect_for(scoring_inputs.Replicas(2, 0.75, 0), RayConfig())


@pytest.mark.parametrize(
    ("typed", "fewest", "most"), [("3", 3, 3), ("2,8", 2, 8), ("1, 4096", 1, 4096)]
)
def test_workers_are_a_number_or_a_range(typed: str, fewest: int, most: int) -> None:
    config = PredictConfig(model="models:/a/1", images="/a", output="/b", workers=typed)
    assert worker_range(config.workers) == (fewest, most)


@pytest.mark.parametrize("typed", ["0", "8,2", "2,", "1,2,3", "many", "-1", "1,5000", "1.5"])
def test_other_workers_are_refused_with_the_rule(typed: str) -> None:
    with pytest.raises(ValueError, match="must be a whole number N of 1..4096, or MIN,MAX with"):
        PredictConfig(model="models:/a/1", images="/a", output="/b", workers=typed)


def test_workers_in_yaml_are_a_number_or_a_list(tmp_path: Path) -> None:
    flags = ["--model=models:/a/1", "--images=/a", "--output=/b", f"--config={tmp_path}/a.yaml"]
    for written, wanted in (("3", (3, 3)), ("[2, 8]", (2, 8)), ("2,8", (2, 8))):
        (tmp_path / "a.yaml").write_text(f"workers: {written}\n")
        assert worker_range(parse(PredictConfig, flags).workers) == wanted
