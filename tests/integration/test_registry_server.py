"""A registry on an MLflow server with PostgreSQL and artifacts in S3: register, promote, roll back,
history, predict, as commands.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.runs import run_folder
from cluster.runs.package_files import load_predictor
from cluster.scoring import compare_packages
from cluster.scoring.detect import detect_share
from cluster.shards.index import open_shard_set
from cluster.tracking import promotion
from cluster.tracking.client import connect
from cluster.tracking.registry import resolve
from cluster.tracking.run import open_run
from pipelines import history, predict, promote, promotion_run, register, rollback, versions
from pipelines.command_line import run_verb
from tests.support.mlflow_server import Server
from tests.support.packages import make_package
from tests.support.postgresql import PostgreSql

pytestmark = pytest.mark.integration

VERBS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "register": (register.RegisterConfig, register.main),
    "promote": (promote.PromoteConfig, promote.main),
    "rollback": (rollback.RollbackConfig, rollback.main),
    "history": (history.HistoryConfig, history.main),
    "versions": (versions.VersionsConfig, versions.main),
    "predict": (predict.PredictConfig, predict.main),
}
# Untrained networks differ by chance.
WIDE = ["--gate.epsilon", "0.9", "--gate.size_drop", "1", "--gate.class_drop", "1"]


@pytest.fixture(scope="module")
def server(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    import boto3

    boto3.client("s3").create_bucket(Bucket="registry")
    with PostgreSql() as database:
        folder = tmp_path_factory.mktemp("server")
        started = Server(folder, store=database.uri, artifacts="s3://registry/artifacts")
        started.wait_until_healthy()
        yield started
        started.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def runs(
    server: Server, small_sets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """The folders of two finished trainings of other weights, whose MLflow runs are on the
    server.
    """
    root = tmp_path_factory.mktemp("runs")
    classes = [category.to_json() for category in open_shard_set(small_sets["val"]).categories]
    for seed, name in enumerate(("first", "second")):
        run = str(root / name)
        checkpoint = Path(run_folder.checkpoint_uri(run, 300))
        checkpoint.mkdir(parents=True)
        make_package(checkpoint, root / f"{name}-package", classes, seed=seed)
        best = {"checkpoint": str(checkpoint), "images_seen": 300, "epoch": 3, "AP": 0.5}
        run_folder.write(run, run_folder.BEST, best)
        config = {"data": {"val": small_sets["val"]}}
        run_folder.write(run, run_folder.CONFIG, {"identity": {}, "config": config})
        recorded = open_run(server.uri, experiment="registry", name=name)
        recorded.finish("FINISHED")
        record = run_folder.TrackingRecord(server.uri, "registry", recorded.run_id)
        run_folder.write_tracking(run, record)
        run_folder.write_finished(run, run_folder.Finished(300, 3))
    return [str(root / "first"), str(root / "second")]


@pytest.fixture
def typed(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Types a verb, and returns what it prints."""

    def detect_here(package: Any, data: str, **_: Any) -> Any:
        return detect_share(load_predictor(package, "cpu"), open_shard_set(data))

    monkeypatch.setattr(compare_packages, "detect_set", detect_here)
    monkeypatch.setattr(promotion_run, "connect_for", lambda *_: None)
    monkeypatch.setattr(promotion, "SETTLE_S", 0.2)

    def run(verb: str, *words: str) -> str:
        config, main = VERBS[verb]
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_verb(config, main, description="", argv=[*words, "--tracking.uri", server.uri])
        said = capsys.readouterr()
        assert end.value.code == 0, said.err
        return said.out

    return run


def test_a_registry_on_postgresql_and_s3_does_all_that_one_in_a_file_does(
    server: Server,
    runs: list[str],
    typed: Callable[..., str],
    small_coco: Path,
    ray_cluster: str,
    tmp_path: Path,
) -> None:
    for number, run in enumerate(runs, start=1):
        assert f"models:/cells/{number} " in typed("register", "--run", run, "--name", "cells")
    client = connect(server.uri)
    assert client.get_model_version("cells", "1").description.startswith("# cells")
    said = typed("promote", "--model", "models:/cells@challenger", *WIDE)
    assert "as recorded on 4 pictures" in said and "models:/cells/2 is the champion now" in said
    said = typed("rollback", "--name", "cells", "--reason", "misses platelets")
    assert "models:/cells/1 is the champion again" in said
    assert resolve("models:/cells@champion", tracking=server.uri).version == 1
    client.set_registered_model_alias("cells", "champion", "2")
    moves = json.loads(typed("history", "--name", "cells", "--as_json", "true"))["moves"]
    assert [(move["from"], move["to"], move["kind"]) for move in moves] == [
        (None, 1, "first"),
        (1, 2, "promotion"),
        (2, 1, "rollback"),
        (1, 2, "by hand"),
    ]
    assert "champion" in typed("versions", "--name", "cells")
    output = tmp_path / "predictions"
    words = ["--model", "models:/cells@champion", "--images", f"{small_coco}/images/val"]
    words += ["--output", str(output), "--workers", "1", "--overlays", "0"]
    assert "8 predicted, 0 could not be read" in typed("predict", *words)
    rows = pq.read_table(output / "predictions.parquet").to_pylist()
    assert len(rows) == 8 and all(row["boxes"] for row in rows)
