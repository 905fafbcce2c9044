"""The tracking settings, and the preflight of an MLflow server or store without MLflow."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading

import pytest
from pydantic import ValidationError

from cluster.errors import PlainError, UsageError
from cluster.tracking.config import (
    TrackingConfig,
    check_server,
    experiment_name,
    tracking_uri,
    ui_command,
)


@pytest.fixture
def port_without_server():
    with socket.socket() as bound:
        # Bound and not listening: connections are refused and nobody else can take the port.
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def serve():
    servers = []

    def answer_with(status, body):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
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

    yield answer_with
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_sqlite_store_is_in_the_storage_root_or_for_a_bucket_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(None, "/data/root") == "sqlite:////data/root/mlflow.db"
    assert tracking_uri(None, "s3://bucket/root") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("http://server:5000", "/data/root") == "http://server:5000"


def test_a_uri_names_a_server_or_an_sqlite_file():
    assert TrackingConfig(uri="https://server:5000/").uri == "https://server:5000"
    assert TrackingConfig(uri="sqlite:////data/mlflow.db").uri == "sqlite:////data/mlflow.db"
    for wrong in ("", "server:5000", "./mlruns", "file:///data", "sqlite:///relative.db"):
        with pytest.raises(ValidationError, match="must be http"):
            TrackingConfig(uri=wrong)
    with pytest.raises(ValidationError, match="must not carry credentials") as refused:
        TrackingConfig(uri="https://me:secret@server:5000")
    assert "secret" not in refused.value.errors()[0]["msg"]


def test_the_option_wins_over_the_environment_and_that_over_the_storage_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable, store in (
        ("http://server:5000/", "http://server:5000"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        # As MLflow's own commands take it, and as the documents write it.
        ("sqlite:///runs/mlflow.db", f"sqlite:///{tmp_path}/runs/mlflow.db"),
        ("sqlite:///../mlflow.db", f"sqlite:///{tmp_path.parent}/mlflow.db"),
        ("", "sqlite:////storage/mlflow.db"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
        assert tracking_uri(None, "/storage") == store
        assert tracking_uri("http://option:5000", "/storage") == "http://option:5000"


@pytest.mark.parametrize("variable", ["./mlruns", "file:///data", "databricks", "postgresql://h/d"])
def test_a_store_of_another_kind_in_the_environment_is_refused(variable, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    with pytest.raises(UsageError, match="^MLFLOW_TRACKING_URI must be http"):
        tracking_uri(None, "/storage")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@server:5000")
    with pytest.raises(UsageError, match="^MLFLOW_TRACKING_URI must not carry cred") as refused:
        tracking_uri(None, "/storage")
    assert "secret" not in str(refused.value)


def test_a_registry_elsewhere_is_refused_and_the_same_one_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for same in (f"sqlite:///{tmp_path}/mlflow.db", "sqlite:///mlflow.db", ""):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", same)
        assert tracking_uri(None, ".") == f"sqlite:///{tmp_path}/mlflow.db"
    for other in ("http://me:secret@registry:5000", "databricks-uc", "sqlite:///other.db"):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", other)
        with pytest.raises(UsageError, match="^MLFLOW_REGISTRY_URI names another store") as refused:
            tracking_uri(None, ".")
        assert "secret" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://server:5000/")
    assert tracking_uri("http://server:5000", ".") == "http://server:5000"


@pytest.mark.parametrize("name", ["MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"])
def test_a_run_or_experiment_that_would_be_passed_over_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "12")
    with pytest.raises(UsageError, match=f"^{name} '12' would not be heeded: .* unset it$"):
        tracking_uri(None, "/storage")


def test_the_experiment_is_that_of_the_option_else_of_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert experiment_name(None) == "retinaray"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cells")
    assert experiment_name(None) == "cells" and experiment_name("mine") == "mine"


def test_what_reads_needs_a_store_and_makes_none(tmp_path):
    uri = tracking_uri(None, f"{tmp_path}/misspelt")
    with pytest.raises(UsageError, match="no MLflow store at .*misspelt/mlflow.db; check"):
        check_server(uri, must_exist=True)
    assert not list(tmp_path.iterdir())


def test_the_preflight_trusts_the_certificates_that_mlflow_trusts(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{tmp_path}/none.pem")
    with pytest.raises(UsageError, match="^REQUESTS_CA_BUNDLE .*none.pem: holds no certificates"):
        check_server(serve(200, b"OK"))
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path))
    check_server(serve(200, b"OK"))


def test_ui_command_names_the_store_or_the_server():
    assert ui_command("sqlite:////data/a b/mlflow.db").endswith(
        "mlflow ui --backend-store-uri 'sqlite:////data/a b/mlflow.db'"
    )
    assert ui_command("https://server:5000") == "https://server:5000"


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
        "import sys, cluster.tracking.client; from cluster.tracking.config import check_server\n"
        f"try: check_server('http://127.0.0.1:{port_without_server}')\n"
        "except Exception as error: print(type(error).__name__, 'mlflow' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "PlainError False\n"
    )
