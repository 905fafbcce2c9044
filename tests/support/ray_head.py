"""`ray start --head` with token authentication, as a child of this process, on ports of its own.

with RayHead(environment) as head:
    subprocess.run(["ray", "job", "submit", ...], env={**environment, **head.environment})
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.ray_nodes import free_port

LIMIT_S = 900.0


class RayHead:
    """`env` is the environment of the head and of the jobs that it runs."""

    def __init__(self, env: Mapping[str, str]):
        self.ray = str(Path(sys.executable).parent / "ray")
        # A job's `python` is the first on the head's PATH: the environment is active where `ray
        # start` is typed.
        self.env = {
            **env,
            "PATH": f"{Path(self.ray).parent}:{env['PATH']}",
            # Otherwise Ray starts a process for each CPU that nobody uses.
            "RAY_prestart_worker_first_driver": "0",
        }
        self.dashboard = free_port()

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
        }

    def __enter__(self) -> Self:
        # Short, for the names of sockets.
        self.folder = tempfile.TemporaryDirectory(prefix="rr-", ignore_cleanup_errors=True)
        self.token = Path(self.folder.name, "token")
        self.token.write_text("0123456789abcdef" * 4)
        self.log = Path(self.folder.name, "head.log")
        ports = {
            "port": free_port(),
            "dashboard-port": self.dashboard,
            "ray-client-server-port": free_port(),
            # The agent starts the jobs. The session's own cluster has the default port.
            "dashboard-agent-listen-port": free_port(),
        }
        command = [
            *(self.ray, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4"),
            *("--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"),
            *(f"--{name}={port}" for name, port in ports.items()),
            *("--object-store-memory=300000000", f"--temp-dir={self.folder.name}/ray"),
        ]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command,
                env={**self.env, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_until_up()
        return self

    def wait_until_up(self) -> None:
        """The head answers when its dashboard has started; each call waits for an answer itself."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until and self.process.poll() is None:
            asked = subprocess.run(
                [self.ray, "job", "list"],
                env={**self.env, **self.environment},
                capture_output=True,
            )
            if asked.returncode == 0:
                return
        said = self.log.read_text()
        self.__exit__()
        raise AssertionError(said)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            # Asked to end, `ray start` waits for its processes, up to a minute.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.folder.cleanup()
