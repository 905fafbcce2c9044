"""`mlflow server` with proxied artifacts, in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.ray_nodes import LIMIT_S, free_port


class Server:
    """`store` is the URI of its database and `artifacts` of its files; by default both are in
    `folder`, which has its log.
    """

    def __init__(self, folder: Path, *, store: str | None = None, artifacts: str | None = None):
        self.port = free_port()
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.store = store or f"sqlite:///{folder}/mlflow.db"
        self.artifacts = artifacts or f"{folder}/artifacts"
        self.start()

    def start(self) -> None:
        command = [
            str(Path(sys.executable).parent / "mlflow"),
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", self.store]
        command += ["--artifacts-destination", self.artifacts, "--serve-artifacts"]
        quiet = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                command, env=quiet, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def end(self, how: signal.Signals) -> None:
        os.killpg(self.process.pid, how)
        self.process.wait(timeout=LIMIT_S)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.uri + "/health", timeout=5) as answer:
                return answer.read() == b"OK"
        except (urllib.error.URLError, OSError):
            return False

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.healthy():
                return
            time.sleep(0.2)
        raise AssertionError(
            f"the server did not come up: {(self.folder / 'server.log').read_text()[-2000:]}"
        )
