"""What tests of the files that start clusters share: where they are, what the lock says, and
Docker's grammar of sizes.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
LOCK = dict(
    re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
)

DOCKER_SIZE = re.compile(r"\d+(\.\d+)? ?([kmgtp]i?b?|b)?", re.IGNORECASE)
"""What `docker run` takes as a size (RAMInBytes of docker/go-units): a number and a unit."""
SIZE_OPTIONS = r"--(?:shm-size|memory|memory-swap|memory-reservation|kernel-memory)[= ](\S+)"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))
