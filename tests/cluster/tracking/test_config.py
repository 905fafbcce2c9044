"""The tracking settings, and the preflight of an MLflow server or store without MLflow."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading

import pytest
from pydantic import ValidationError

from cluster.errors import PlainError
from cluster.tracking.config import TrackingConfig, check_server, tracking_uri, ui_command


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
