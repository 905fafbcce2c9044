"""The SQLite store of one machine: its names, its first users, and a move of it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import sqlite3
from multiprocessing.synchronize import Barrier
from pathlib import Path
from urllib.request import pathname2url

import pytest

from cluster.errors import PlainError, UsageError
from cluster.runs.package_files import package_digest
from cluster.tracking import embedded
from cluster.tracking.client import connect
from cluster.tracking.logged_package import download_package, log_package
from cluster.tracking.promotion import register
from cluster.tracking.registry import DIGEST_TAG, resolve
from cluster.tracking.run import attach_run, open_run

ODD = "50%41 a?b#c'ä:d\"@e"
"""A folder of this name is one in which a URI that was joined of strings leads elsewhere."""


@pytest.mark.parametrize("name", ["plain", "a b", "a#b", "100%", "q?x=1", "50%41", "ä:'", ODD])
def test_the_uri_of_a_file_names_this_file_to_us_and_to_sqlalchemy(name: str) -> None:
    from sqlalchemy import make_url

    path = f"/data/{name}/mlflow.db"
    uri = embedded.uri_of(path)
    assert embedded.path_of(uri) == path == make_url(uri).database
    assert embedded.same(uri, f"sqlite+pysqlite:///{pathname2url(path)}")
    assert not embedded.same(uri, "http://server:5000")


def test_the_uri_of_a_server_has_no_path() -> None:
    assert embedded.path_of("http://server:5000") is None
    assert embedded.same("http://server:5000/", "http://server:5000")


def _make_store(folder: str, package: str) -> None:
    run = open_run(embedded.uri_of(f"{folder}/mlflow.db"), experiment="tests", name="cells")
    run.log_text("kept", "config.json")
    tags = {DIGEST_TAG: package_digest(package)}
    register(log_package(run, package), "cells", tracking=run.uri, tags=tags)
    assert run.finish("FINISHED")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, package: str) -> tuple[Path, str]:
    """A storage root with a run and a registered model, made under an odd name and then moved;
    and the id of the run.
    """
    base = tmp_path_factory.mktemp("moved")
    old, new = base / ODD, base / "new"
    old.mkdir()
    # In a process of its own: MLflow remembers where a run's artifacts are.
    maker = multiprocessing.get_context("spawn").Process(
        target=_make_store, args=(str(old), package)
    )
    maker.start()
    maker.join()
    assert [entry.name for entry in base.iterdir()] == [ODD]
    (config,) = old.glob("mlartifacts/*/artifacts/config.json")
    assert config.read_text() == "kept"
    old.rename(new)
    return new, config.parent.parent.name


def test_the_artifacts_of_a_moved_store_are_beside_it(
    moved: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run_id = moved
    uri = embedded.uri_of(f"{root}/mlflow.db")
    version = resolve("models:/cells@champion", tracking=uri)
    assert "was moved or copied" in capsys.readouterr().err
    download_package(version, tracking=uri, folder=str(tmp_path))
    run = attach_run(uri, run_id)
    run.log_text("new", "late.txt")
    assert run.close()
    assert (root / f"mlartifacts/{run_id}/artifacts/late.txt").read_text() == "new"
    again = open_run(uri, experiment="tests", name="other")
    again.log_text("x", "x.txt")
    assert again.finish("FINISHED")
    assert (root / f"mlartifacts/{again.run_id}/artifacts/x.txt").exists()
    assert [entry.name for entry in root.parent.iterdir()] == ["new"]
    assert "moved" not in capsys.readouterr().err


def test_a_copy_has_artifacts_of_its_own_and_the_original_keeps_its_own(
    moved: tuple[Path, str], tmp_path: Path
) -> None:
    root, run_id = moved
    connect(embedded.uri_of(f"{root}/mlflow.db"))
    shutil.copytree(root, tmp_path / "copy")
    for folder in (tmp_path / "copy", root):
        client = connect(embedded.uri_of(f"{folder}/mlflow.db"))
        assert client.get_run(run_id).info.artifact_uri.startswith(f"{folder}/mlartifacts/")


def test_a_moved_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as store:
        store.execute("CREATE TABLE experiments (artifact_location TEXT)")
        store.execute("INSERT INTO experiments VALUES ('/old/mlartifacts')")
        store.execute(
            "CREATE TRIGGER no BEFORE UPDATE ON experiments"
            " BEGIN SELECT RAISE(ABORT, 'read only'); END"
        )
    store.close()
    with pytest.raises(PlainError, match=r"mlflow.db was moved, .*read only.*make it writable"):
        embedded.follow_move(str(path))


def test_only_places_of_the_store_itself_are_corrected(tmp_path: Path) -> None:
    path, here = tmp_path / "mlflow.db", f"{tmp_path}/mlartifacts"
    (tmp_path / "there/mlartifacts/2").mkdir(parents=True)
    given = {
        "/gone/mlartifacts/1/artifacts": f"{here}/1/artifacts",
        "file:///gone/mlartifacts/1/artifacts": f"{here}/1/artifacts",
        # Still there, and not here: a store of another place.
        f"{tmp_path}/there/mlartifacts/2": f"{tmp_path}/there/mlartifacts/2",
        "/gone/mlartifacts-old/1": "/gone/mlartifacts-old/1",
        "mlflow-artifacts:/1/mlartifacts": "mlflow-artifacts:/1/mlartifacts",
        "s3://bucket/mlartifacts/1": "s3://bucket/mlartifacts/1",
        "/gone/mlruns/0": "/gone/mlruns/0",
    }
    with sqlite3.connect(path) as store:
        store.execute("CREATE TABLE runs (number INTEGER, artifact_uri TEXT)")
        store.executemany("INSERT INTO runs VALUES (?, ?)", enumerate([*given, None]))
    embedded.follow_move(str(path))
    rows = store.execute("SELECT artifact_uri FROM runs ORDER BY number").fetchall()
    store.close()
    assert [row[0] for row in rows] == [*given.values(), None]


def test_a_run_is_found_in_the_store_above_its_folder_else_where_it_was_recorded(
    tmp_path: Path,
) -> None:
    recorded = "sqlite:////old/mlflow.db"
    for folder, run_id in ((tmp_path, "far"), (tmp_path / "sweeps/cells", "near")):
        folder.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(folder / "mlflow.db") as store:
            store.execute("CREATE TABLE runs (run_uuid TEXT)")
            store.execute("INSERT INTO runs VALUES (?)", (run_id,))
        store.close()
    run = f"{tmp_path}/sweeps/cells/runs/trial"
    near, far = f"sqlite:///{tmp_path}/sweeps/cells/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"
    assert embedded.store_of_run(recorded, "near", run) == near
    assert embedded.store_of_run(recorded, "far", run) == far
    assert embedded.store_of_run(recorded, "nowhere", run) == recorded
    assert embedded.store_of_run("http://server:5000", "far", run) == "http://server:5000"


def test_a_look_up_makes_no_store(tmp_path: Path) -> None:
    uri = embedded.uri_of(f"{tmp_path}/misspelt/mlflow.db")
    for look_up in (
        lambda: connect(uri),
        lambda: attach_run(uri, "f" * 32),
        lambda: resolve("models:/cells@champion", tracking=uri),
    ):
        with pytest.raises(UsageError, match=r"no MLflow store at .*/misspelt/mlflow.db; check --"):
            look_up()
    assert not list(tmp_path.iterdir())


def _first_user(folder: str, number: int, together: Barrier) -> None:
    from cluster.tracking.client import import_mlflow

    import_mlflow()
    together.wait()
    run = open_run(embedded.uri_of(f"{folder}/mlflow.db"), experiment="tests", name=str(number))
    run.log_metrics({"AP": number}, 1)
    assert run.finish("FINISHED")


def test_two_first_users_make_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(2)
    users = []
    for number in (1, 2):
        # MLflow's own lock is in the folder for temporary files, which two users may not share.
        (tmp_path / f"tmp{number}").mkdir()
        monkeypatch.setenv("TMPDIR", f"{tmp_path}/tmp{number}")
        user = spawn.Process(target=_first_user, args=(str(tmp_path), number, together))
        user.start()
        users.append(user)
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0, 0]
    client = connect(embedded.uri_of(f"{tmp_path}/mlflow.db"))
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name: run.data.metrics["AP"] for run in runs} == {"1": 1.0, "2": 2.0}


def test_nobody_else_opens_the_store_meanwhile(tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    with embedded.alone(f"{tmp_path}/mlflow.db"), pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
