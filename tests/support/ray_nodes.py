"""A Ray cluster of several nodes on this machine: a head without CPUs, and nodes that come and go.
Each node is a process group of its own.

with Nodes(environment) as nodes:
    nodes.add("first", cpus=1)
    nodes.kill("first")
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import ray
from ray._raylet import GcsClient

LIMIT_S = 900.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Nodes:
    """`env` is the environment of all its processes."""

    def __init__(self, env: Mapping[str, str]):
        # By default Ray needs 30 s to notice that a node is gone, and starts a process for each CPU
        # that nobody uses.
        self.env = {
            **env,
            "RAY_prestart_worker_first_driver": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
        }
        self.processes: dict[str, subprocess.Popen] = {}
        self.port = free_port()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # Short, for the names of sockets.
            self.folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="rr-", ignore_cleanup_errors=True)
            )
            stack.callback(lambda: self.kill_all(self.processes))
            ports = [f"--port={self.port}", f"--ray-client-server-port={free_port()}"]
            self.start(
                "head",
                "--head",
                *ports,
                "--num-cpus=0",
                f"--temp-dir={self.folder}/ray",
                "--include-dashboard=false",
            )
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        """Start a node, in an environment of its own if given, and wait until it is up. Ray gives
        up after a fixed 30 s, which may not be enough on two busy cores: then start it again.
        """
        # Without a head the question alone takes 30 s.
        before, until = self.alive() if self.processes else set(), time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            self.spawn(name, *options, env=env)
            while self.processes[name].poll() is None and time.monotonic() < until:
                if self.alive() - before:
                    return
                time.sleep(0.5)
            self.kill(name)
        raise AssertionError("".join(path.read_text() for path in Path(self.folder).glob("*.log")))

    def spawn(self, name: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            "--disable-usage-stats",
            "--node-ip-address=127.0.0.1",
        ]
        command += [
            "--object-store-memory=150000000",
            f"--dashboard-agent-listen-port={free_port()}",
            *options,
        ]
        with open(f"{self.folder}/{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=env or self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def add(self, name: str, *, cpus: float) -> None:
        self.start(name, f"--address={self.address}", f"--num-cpus={cpus}")

    def alive(self) -> set[ray.NodeID]:
        """Nodes that are up. It asks the control store, because this process may be connected to
        another cluster.
        """
        try:
            nodes = GcsClient(address=self.address).get_all_node_info(timeout=2)
        except ray.exceptions.RpcError:
            return set()
        return {node_id for node_id, node in nodes.items() if node.state == 0}

    def kill(self, name: str) -> None:
        """Kill the raylet and all processes that it started, as when its machine is lost."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def remove_all(self) -> None:
        """End all nodes but the head, and wait until the control store knows it."""
        self.kill_all(name for name in self.processes if name != "head")
        until = time.monotonic() + LIMIT_S
        while len(self.alive()) > 1:
            assert time.monotonic() < until, "a node that ended counts as alive"
            time.sleep(0.2)

    def kill_all(self, names: Iterable[str]) -> None:
        """Asked to end, `ray start` would wait for its processes, up to a minute."""
        for name in list(names):
            self.kill(name)
