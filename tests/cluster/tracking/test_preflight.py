"""The preflight of an MLflow server or store, without MLflow: against real SQLite stores, and
against servers that answer with what a real one answered.
"""

from __future__ import annotations

import base64
import http.server
import json
import socket
import sqlite3
import subprocess
import sys
import threading

import pytest

from cluster.errors import PlainError, UsageError
from cluster.tracking.client import connect
from cluster.tracking.preflight import (
    check_experiment,
    check_model_name,
    check_server,
    has_run,
    has_version,
)


@pytest.fixture
def port_without_server():
    with socket.socket() as bound:
        # Bound and not listening: connections are refused and nobody else can take the port.
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def serve():
    servers, asked = [], []

    def answer_with(status, body):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers.get("Authorization")))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    answer_with.asked = asked
    yield answer_with
    for server in servers:
        server.shutdown()
        server.server_close()


def test_preflight_tells_dead_unhealthy_and_wrong_servers_from_a_good_one(
    port_without_server, serve
):
    check_server(serve(200, b"OK"))
    check_server(serve(401, b"who are you?"))
    with pytest.raises(
        PlainError,
        match=(
            rf"no MLflow server answers at http://127\.0\.0\.1:{port_without_server} .*refused.*uri"
        ),
    ) as dead:
        check_server(f"http://127.0.0.1:{port_without_server}")
    assert dead.value.exit_code == 1
    with pytest.raises(PlainError, match="unhealthy: /health returned 503"):
        check_server(serve(503, b"starting"))
    with pytest.raises(PlainError, match="not an MLflow server"):
        check_server(serve(200, b"<html>a dashboard</html>"))
    with pytest.raises(PlainError, match="not an MLflow server"):
        check_server(serve(404, b""))


def test_preflight_refuses_a_file_that_is_not_a_database_and_a_folder_below_a_file(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is a text file")
    with pytest.raises(PlainError, match="not an SQLite file"):
        check_server(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(PlainError, match="cannot be used"):
        check_server(f"sqlite:///{tmp_path}/mlflow.db/below/mlflow.db")
    check_server(f"sqlite:///{tmp_path}/new/mlflow.db")


def test_client_and_preflight_do_not_import_mlflow(port_without_server):
    code = (
        "import sys, cluster.tracking.client; from cluster.tracking.preflight import check_server\n"
        f"try: check_server('http://127.0.0.1:{port_without_server}')\n"
        "except Exception as error: print(type(error).__name__, 'mlflow' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "PlainError False\n"
    )


def test_what_reads_needs_a_store_and_makes_none(tmp_path):
    uri = f"sqlite:///{tmp_path}/misspelt/mlflow.db"
    with pytest.raises(UsageError, match="no MLflow store at .*misspelt/mlflow.db; check"):
        check_server(uri, must_exist=True)
    assert not list(tmp_path.iterdir())


def test_the_preflight_trusts_the_certificates_that_mlflow_trusts(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{tmp_path}/none.pem")
    with pytest.raises(UsageError, match="^REQUESTS_CA_BUNDLE .*none.pem: holds no certificates"):
        check_server(serve(200, b"OK"))
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path))
    check_server(serve(200, b"OK"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(URI, client) of a real store."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    return uri, connect(uri, creates=True)


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(store):
    uri, client = store
    number = client.create_experiment("gone")
    client.create_experiment("cells")
    client.delete_experiment(number)
    check_experiment(uri, "cells")
    check_experiment(uri, "new")
    with pytest.raises(UsageError) as refused:
        check_experiment(uri, "gone")
    assert str(refused.value) == (
        f"tracking.experiment 'gone': is deleted in MLflow at {uri}; restore it with"
        f" MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {number}, or choose"
        " another --tracking.experiment"
    )
    client.restore_experiment(number)
    check_experiment(uri, "gone")


def test_the_name_of_a_prompt_is_refused_for_a_model(store):
    uri, client = store
    client.create_registered_model("cells")
    client.register_prompt("question", "What is {{this}}?")
    for name in ("cells", "new"):
        check_model_name(uri, name, option="name")
    with pytest.raises(UsageError, match="^registered_name question: is the name of a prompt"):
        check_model_name(uri, "question", option="registered_name")


def test_a_run_is_there_until_it_is_deleted(store, tmp_path):
    uri, client = store
    run = client.create_run(client.create_experiment("runs")).info.run_id
    assert has_run(uri, run) and not has_run(uri, "0" * 32)
    client.delete_run(run)
    assert not has_run(uri, run)
    assert not has_run(f"sqlite:///{tmp_path}/moved/mlflow.db", run)
    assert not (tmp_path / "moved").exists()


def test_a_version_is_there_until_it_is_deleted(store, tmp_path):
    uri, client = store
    client.create_registered_model("versions")
    for _ in range(2):
        client.create_model_version("versions", source=f"{tmp_path}/model")
    assert has_version(uri, "versions", "1") and has_version(uri, "versions", "2")
    assert not has_version(uri, "versions", "3") and not has_version(uri, "others", "1")
    client.delete_model_version("versions", "1")
    assert not has_version(uri, "versions", "1") and has_version(uri, "versions", "2")
    client.delete_registered_model("versions")
    assert not has_version(uri, "versions", "2")
    assert not has_version(f"sqlite:///{tmp_path}/moved/mlflow.db", "versions", "2")
    assert not (tmp_path / "moved").exists()


def test_a_store_with_another_schema_is_one_line_with_the_remedy(store, tmp_path):
    uri, _ = store
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as source, sqlite3.connect(path) as copy:
        source.backup(copy)
    other = f"sqlite:///{path}"
    check_server(other)
    for version, message in (
        # The first schema of MLflow 1, and one that is not made yet.
        (
            "451aebb31d03",
            rf"another MLflow version; back it up, then run: mlflow db upgrade {other}$",
        ),
        ("ffffffffffff", "schema ffffffffffff of a newer MLflow than the installed .*; install"),
    ):
        with sqlite3.connect(path) as database:
            database.execute("UPDATE alembic_version SET version_num = ?", (version,))
        database.close()
        with pytest.raises(PlainError, match=message):
            check_server(other)
    source.close()
    copy.close()


def test_a_damaged_store_is_one_line(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(PlainError, match=f"the MLflow store {path} cannot be read"):
        check_server(f"sqlite:///{path}")


def test_a_server_is_asked_over_http(serve, monkeypatch):
    def answer(**content):
        return serve(200, json.dumps(content).encode())

    stage = {"experiment_id": "3", "lifecycle_stage": "active"}
    check_experiment(answer(experiment=stage), "a b/c")
    assert serve.asked[-1] == (
        "/api/2.0/mlflow/experiments/get-by-name?experiment_name=a+b%2Fc",
        None,
    )
    with pytest.raises(UsageError, match="restore --experiment-id 3,"):
        check_experiment(answer(experiment=stage | {"lifecycle_stage": "deleted"}), "a")
    prompt = {"tags": [{"key": "mlflow.prompt.is_prompt", "value": "true"}]}
    with pytest.raises(UsageError, match="name of a prompt"):
        check_model_name(answer(registered_model=prompt), "a", option="name")
    assert has_run(answer(run={"info": {"lifecycle_stage": "active"}}), "a")
    assert not has_run(answer(run={"info": {"lifecycle_stage": "deleted"}}), "a")
    absent = serve(404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}')
    check_experiment(absent, "a")
    check_model_name(absent, "a", option="name")
    assert not has_run(absent, "a")
    assert has_version(answer(model_version={"name": "a b", "version": "2"}), "a b", "2")
    assert serve.asked[-1][0] == "/api/2.0/mlflow/model-versions/get?name=a+b&version=2"
    assert not has_version(absent, "a", "2")
    # Who gives other credentials than those of the environment is asked when MLflow is used.
    closed = serve(401, b"who are you?")
    check_experiment(closed, "a")
    assert has_run(closed, "a") and has_version(closed, "a", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    check_experiment(absent, "a")
    assert serve.asked[-1][1] == f"Basic {base64.b64encode(b'me:secret').decode()}"


def test_a_server_that_fails_is_one_line(serve, port_without_server):
    schema = b'{"message": "Detected out-of-date database schema (found version 1, but ...)"}'
    with pytest.raises(PlainError, match="another MLflow version.*mlflow db upgrade DATABASE_URI"):
        check_experiment(serve(500, schema), "a")
    with pytest.raises(PlainError, match="failed: it returned 502; check the store"):
        check_experiment(serve(502, b"<html>bad gateway</html>"), "a")
    with pytest.raises(PlainError, match="did not answer"):
        check_experiment(serve(200, b"<html>a dashboard</html>"), "a")
    with pytest.raises(PlainError, match="did not answer .*refused"):
        has_run(f"http://127.0.0.1:{port_without_server}", "a")
    with pytest.raises(PlainError, match="did not answer .*refused"):
        has_version(f"http://127.0.0.1:{port_without_server}", "a", "2")
