"""MLflow runs against a real SQLite store in this process, one for the whole file, because creating
one costs seconds.
"""

from __future__ import annotations

import socket
import sqlite3
import threading

import pytest

from cluster.errors import PlainError, UsageError
from cluster.tracking import run as tracking_run
from cluster.tracking.client import connect
from cluster.tracking.config import tracking_uri
from cluster.tracking.run import attach_run, open_run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(autouse=True)
def no_background(monkeypatch):
    # The thread only calls flush() every two seconds; the tests call it themselves, so that they
    # are the same every time.
    monkeypatch.setattr(tracking_run, "SEND_EVERY_S", 1e6)


def start(store, **kwargs):
    return open_run(tracking_uri(None, store), experiment="tests", name="a run", **kwargs)


def history(run, key):
    return sorted(
        (metric.step, metric.value) for metric in run.client.get_metric_history(run.run_id, key)
    )


def test_the_run_has_everything_that_was_logged(store, tmp_path):
    run = start(store, tags={"digest": "abc"}, parent_run_id="0" * 32)
    run.log_params({"optimizer.lr": 0.01, **{f"p{i}": i for i in range(250)}})
    run.log_metrics({"loss": 2.5, "AP/tv/monitor": 0.25}, step=128)
    (tmp_path / "note.txt").write_text("from a file")
    run.log_artifact(str(tmp_path / "note.txt"), "notes")
    (tmp_path / "note.txt").unlink()
    run.log_text("a: 1", "config.yaml")
    run.set_tag("checkpoint", "/somewhere")
    assert run.finish("FINISHED", patience_s=0)
    found = run.client.get_run(run.run_id)
    assert len(found.data.params) == 251 and found.data.params["optimizer.lr"] == "0.01"
    assert found.data.metrics == {"loss": 2.5, "AP/tv/monitor": 0.25}
    assert history(run, "loss") == [(128, 2.5)]
    assert found.info.status == "FINISHED" and found.info.run_name == "a run"
    assert {
        "digest": "abc",
        "checkpoint": "/somewhere",
        "mlflow.parentRunId": "0" * 32,
    }.items() <= found.data.tags.items()
    assert found.info.artifact_uri == f"{store}/mlartifacts/{run.run_id}/artifacts"
    for name, text in (("notes/note.txt", "from a file"), ("config.yaml", "a: 1")):
        with open(f"{store}/mlartifacts/{run.run_id}/artifacts/{name}", encoding="utf-8") as file:
            assert file.read() == text


def test_resume_continues_the_run_without_duplicates(store):
    first = start(store)
    first.log_params({"gamma": 2.0, "workers": 2})
    for step in (100, 200, 300):
        first.log_metrics({"loss": step / 100}, step)
    first.log_metrics({"AP": 0.5}, 200)
    assert first.finish("KILLED", patience_s=0)

    # From the checkpoint at 100 images: 200 and 300 come again, AP at 300 and loss at 400 are new.
    again = start(store, run_id=first.run_id)
    assert (
        again.run_id == first.run_id and again.client.get_run(first.run_id).info.status == "RUNNING"
    )
    again.log_params({"gamma": 2.0, "workers": 1})
    again.log_metrics({"loss": 9.0}, 200)
    again.log_metrics({"loss": 9.0, "AP": 0.6}, 300)
    again.log_metrics({"loss": 4.0}, 400)
    assert again.finish("FINISHED", patience_s=0)
    assert history(again, "loss") == [(100, 1.0), (200, 2.0), (300, 3.0), (400, 4.0)]
    assert history(again, "AP") == [(200, 0.5), (300, 0.6)]
    data = again.client.get_run(first.run_id).data
    assert data.params == {"gamma": "2.0", "workers": "2"}
    assert data.tags["changed.workers"] == "1" and "changed.gamma" not in data.tags


def test_a_repeated_step_is_sent_once(store):
    """Workers that are restarted from a checkpoint make steps again, also while the store takes
    nothing.
    """
    run = start(store)
    for step, value in ((100, 1.0), (200, 2.0)):
        run.log_metrics({"loss": value}, step)
    assert run.flush()
    for step, value in ((200, 9.0), (150, 1.5), (300, 3.0), (300, 9.0), (150, 9.0)):
        run.log_metrics({"loss": value}, step)
    assert run.flush()
    for step, value in ((300, 9.0), (400, 4.0), (400, 9.0)):
        run.log_metrics({"loss": value}, step)
    assert run.finish("FINISHED", patience_s=0)
    assert history(run, "loss") == [(100, 1.0), (150, 1.5), (200, 2.0), (300, 3.0), (400, 4.0)]


def test_a_store_that_breaks_midway_loses_nothing_and_warns_once(store, capsys):
    run = start(store)
    run.log_metrics({"loss": 3.0}, 1)
    assert run.flush()
    database = sqlite3.connect(f"{store}/mlflow.db")
    database.execute("ALTER TABLE metrics RENAME TO metrics_away")
    run.log_params({"lr": 0.1})
    for step in range(2, 1502):
        run.log_metrics({"loss": 3.0 / step}, step)
    run.log_text("kept", "kept.txt")
    assert not run.flush() and not run.flush()
    assert capsys.readouterr().err.count("warning: MLflow at sqlite:") == 1
    database.execute("ALTER TABLE metrics_away RENAME TO metrics")
    database.close()
    run.log_metrics({"loss": 0.0}, 1502)
    assert run.finish("FINISHED", patience_s=0)
    assert history(run, "loss") == [
        (1, 3.0),
        *((step, 3.0 / step) for step in range(2, 1502)),
        (1502, 0.0),
    ]
    found = run.client.get_run(run.run_id)
    assert found.data.params == {"lr": "0.1"} and found.info.status == "FINISHED"
    assert [file.path for file in run.client.list_artifacts(run.run_id)] == ["kept.txt"]
    assert capsys.readouterr().err == ""


def test_a_store_that_stays_broken_lets_the_run_end_and_a_warning_counts_the_rest(
    store, capsys, monkeypatch
):
    run = start(store)

    def broken(*_, **__):
        raise ConnectionError("the server went away")

    for name in ("log_batch", "set_terminated"):
        monkeypatch.setattr(run.client, name, broken)
    run.log_metrics({"a": 1.0, "b": 2.0}, 1)
    assert not run.finish("FAILED", patience_s=0)
    said = capsys.readouterr().err
    assert "the server went away" in said and "lacks 2 metric values and 1 other entries" in said


def test_a_refused_entry_does_not_block_the_others(store, capsys, monkeypatch):
    from mlflow.exceptions import MlflowException

    run = start(store)

    def refuse(*_):
        raise MlflowException.invalid_parameter_value("no such name")

    monkeypatch.setattr(run.client, "log_text", refuse)
    run.log_text("x", "x.txt")
    run.set_tag("after", "1")
    assert not run.finish("FINISHED", patience_s=0)
    assert "refused x.txt (no such name)" in capsys.readouterr().err
    found = run.client.get_run(run.run_id)
    assert found.data.tags["after"] == "1" and found.info.status == "FINISHED"


def test_one_refused_metric_costs_only_itself(store, capsys, monkeypatch):
    """MLflow refuses the whole batch of 1,000; no name that we make is refused, so one is planted
    behind our rule.
    """
    run = start(store)
    monkeypatch.setattr(tracking_run, "mlflow_names", lambda names: {name: name for name in names})
    calls = []
    send = run.client.log_batch
    monkeypatch.setattr(run.client, "log_batch", lambda *a, **k: (calls.append(1), send(*a, **k)))
    for step in range(500):
        run.log_metrics({"loss": step, "a+b" if step == 77 else "box": step}, step)
    assert not run.finish("FINISHED", patience_s=0)
    assert history(run, "loss") == [(step, float(step)) for step in range(500)]
    assert len(history(run, "box")) == 499
    # Halves of 1,000 until one is left: at most two calls on each of 10 levels, and the first.
    assert len(calls) <= 21
    said = capsys.readouterr().err
    assert "lacks 1 metric values and 0 other entries; it refused metric a+b at step 77 (" in said


def test_odd_numbers_are_kept_and_impossible_ones_refused_one_by_one(store, capsys):
    run = start(store)
    run.log_metrics({"nan": float("nan"), "inf": float("inf"), "fine": 1.0}, 1)
    run.log_metrics({"fine": 10**400, "also": 2.0}, 2)
    run.log_metrics({"fine": "a word", "also": 3.0}, 3)
    run.log_metrics({"fine": 2.0}, 2**63)
    run.log_metrics({"fine": 4.0}, 2**63 - 1)
    assert not run.finish("FINISHED", patience_s=0)
    assert history(run, "fine") == [(1, 1.0), (2**63 - 1, 4.0)]
    assert history(run, "also") == [(2, 2.0), (3, 3.0)]
    ((step, value),) = history(run, "nan")
    assert step == 1 and value != value
    # MLflow stores the largest float for infinity.
    assert history(run, "inf") == [(1, pytest.approx(1.7976931348623157e308))]
    said = capsys.readouterr().err
    assert "lacks 3 metric values and 0 other entries; it refused metric fine at step 2 (" in said


def test_params_and_tags_that_mlflow_refuses_cost_only_themselves(store, capsys, monkeypatch):
    run = start(store)
    run.log_params({"gamma": 2.0})
    assert run.flush()
    # The parameter of another driver, written after ours has looked.
    stored = run.client.get_run(run.run_id)
    run.client.log_param(run.run_id, "alpha", "0.5")
    monkeypatch.setattr(run.client, "get_run", lambda _: stored)
    run.log_params({"alpha": 0.25, "gamma": 2.0, "beta": 1.0, "long": "x" * 6001})
    run.set_tag("note", "y" * 8001)
    monkeypatch.setattr(run, "_warned", True)
    assert not run.finish("FINISHED", patience_s=0)
    monkeypatch.undo()
    data = run.client.get_run(run.run_id).data
    assert {name: data.params[name] for name in ("alpha", "beta", "gamma")} == {
        "alpha": "0.5",
        "beta": "1.0",
        "gamma": "2.0",
    }
    # 6,000 = 5,979 and the 21 letters of the mark; 8,000 likewise.
    assert data.params["long"] == "x" * 5979 + "... (6001 characters)"
    assert data.tags["note"] == "y" * 7979 + "... (8001 characters)"
    assert "lacks 0 metric values and 1 other entries; it refused parameter alpha (" in (
        capsys.readouterr().err
    )


def test_a_changed_parameter_with_the_longest_name_has_its_tag(store):
    first = start(store)
    name = "p" * 250
    first.log_params({name: 1})
    assert first.finish("KILLED", patience_s=0)
    again = start(store, run_id=first.run_id)
    again.log_params({name: 2})
    assert again.finish("FINISHED", patience_s=0)
    tags = again.client.get_run(first.run_id).data.tags
    assert [value for key, value in tags.items() if key.startswith("changed.ppp")] == ["2"]


@pytest.mark.parametrize("gone", ["deleted", "purged"])
def test_a_run_that_is_gone_lacks_every_value(store, capsys, gone, monkeypatch):
    run = start(store)
    run.client.delete_run(run.run_id)
    if gone == "purged":
        with sqlite3.connect(f"{store}/mlflow.db") as database:
            for table in ("tags", "runs"):
                database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run.run_id,))
    calls = []
    send = run.client.log_batch
    monkeypatch.setattr(run.client, "log_batch", lambda *a, **k: (calls.append(1), send(*a, **k)))
    for step in range(40):
        run.log_metrics({"loss": 1.0, "box": 1.0}, step)
    run.log_params({"gamma": 2.0, "alpha": 0.5})
    run.set_tag("note", "x")
    assert not run.close(patience_s=0)
    # 40 x 2 values; 2 parameters and a tag. One call for the values and one for the parameters.
    assert "lacks 80 metric values and 3 other entries" in capsys.readouterr().err
    assert len(calls) == 2


def test_attach_adds_to_a_finished_run_and_does_not_change_its_status(store):
    run = start(store)
    run.log_metrics({"AP": 0.5}, 100)
    assert run.finish("FINISHED", patience_s=0)
    evaluation = attach_run(run.uri, run.run_id)
    evaluation.log_metrics({"AP": 0.75}, 100)
    assert evaluation.close(patience_s=0)
    found = run.client.get_run(run.run_id)
    assert found.info.status == "FINISHED" and found.data.metrics["AP"] == 0.75
    with pytest.raises(UsageError, match="has no run 'nope'"):
        attach_run(run.uri, "nope")


def test_a_run_or_experiment_that_was_deleted(store, capsys):
    run = start(store)
    run.finish("KILLED", patience_s=0)
    run.client.delete_run(run.run_id)
    fresh = start(store, run_id=run.run_id)
    fresh.finish("FINISHED", patience_s=0)
    assert (
        fresh.run_id != run.run_id
        and f"has no run {run.run_id} any more" in capsys.readouterr().err
    )
    client = connect(run.uri)
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(UsageError, match="experiment 'deleted': is deleted in MLflow at sqlite"):
        open_run(run.uri, experiment="deleted", name="x")


def test_the_thread_sends_by_itself(store, monkeypatch):
    monkeypatch.setattr(tracking_run, "SEND_EVERY_S", 0.0)
    run = start(store)
    sent = threading.Event()
    send = run.client.log_batch
    monkeypatch.setattr(run.client, "log_batch", lambda *a, **k: (send(*a, **k), sent.set()))
    run.log_metrics({"loss": 1.0}, 1)
    assert sent.wait(timeout=30)
    run.finish("FINISHED")


def test_a_server_that_dies_after_the_preflight_is_one_plain_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as bound:
        # Bound and not listening: connections are refused and nobody else can take the port.
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    with pytest.raises(PlainError, match=r"^MLflow at http://127\.0\.0\.1:\d+ failed: .*[^\n]$"):
        open_run(
            f"http://127.0.0.1:{port}",
            experiment="tests",
            name="x",
        )
