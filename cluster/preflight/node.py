"""What a node has, measured on the node itself. It imports neither torch nor MLflow, which cost
seconds.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.preflight.storage_speed import StorageSpeed, measure_storage

SHARED_MEMORY = "/dev/shm"
NVIDIA_SMI_S = 20.0
"""`nvidia-smi` takes 1 to 3 s where no process holds the driver open; a sick driver never ends."""


@dataclass(frozen=True)
class Space:
    """Of a file system, in bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class Graphics:
    """The GPUs that the driver shows: their names, and the driver's version."""

    names: tuple[str, ...]
    driver: str


@dataclass(frozen=True)
class NodeReport:
    """`node` names it in messages, by its address or its host name."""

    node: str
    python: str
    packages: Mapping[str, str]
    """Version by normalised name, of everything that is installed."""
    graphics: Graphics | None
    """None without a driver."""
    shared_memory: Space | None
    """None where the system has no /dev/shm."""
    disk: Space
    """Where Ray keeps its files."""
    token: bool
    """Whether the node asks for a token."""
    storage: StorageSpeed | str
    """The speed, or why the storage cannot be used."""


def measure(node: str, storage: str, marker: str) -> NodeReport:
    """Look at this machine. `storage` and `marker`: see `measure_storage`."""
    return NodeReport(
        node=node,
        python=platform.python_version(),
        packages=installed_packages(),
        graphics=read_graphics(),
        shared_memory=shared_memory(),
        disk=disk(),
        token=os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
        storage=measure_storage(storage, marker, node=node),
    )


def now() -> float:
    """The node's clock, in seconds since 1970."""
    return time.time()


def installed_packages() -> dict[str, str]:
    return {
        normalised(found.name): found.version
        for found in importlib.metadata.distributions()
        if found.name
    }


def normalised(name: str) -> str:
    """The name of a package as the lock file writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_graphics() -> Graphics | None:
    """The GPUs by `nvidia-smi`; None where there is no such program, or it does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [line.rsplit(", ", 1) for line in answer.stdout.splitlines() if ", " in line]
    if answer.returncode or not rows:
        return None
    return Graphics(tuple(name for name, _ in rows), rows[0][1])


def shared_memory() -> Space | None:
    return _space(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else None


def disk() -> Space:
    return _space(os.environ.get("RAY_TMPDIR") or "/tmp")


def _space(folder: str) -> Space:
    usage = shutil.disk_usage(folder)
    return Space(usage.total, usage.free)
