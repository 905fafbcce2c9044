"""The container files, compose and the systemd unit: versions of the lock, no secrets, no root."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import cluster.errors
from tests.support.deploy_files import DEPLOY, DOCKER_SIZE, LOCK, ROOT, VERSION, documents

CONTAINER_FILES = [DEPLOY / "Containerfile", DEPLOY / "mlflow" / "Containerfile"]
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, argument) of a container file, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]  # type: ignore[misc]


@pytest.mark.parametrize("path", CONTAINER_FILES, ids=lambda path: path.parent.name)
def test_a_container_runs_as_a_user_and_its_base_has_a_version(path: Path) -> None:
    steps = instructions(path)
    users = [argument for name, argument in steps if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    for name, argument in steps:
        if name == "FROM":
            assert re.fullmatch(r"[\w./-]+:\d[\w.-]+", argument), argument
        if name in ("ARG", "ENV"):
            assert not re.search("SECRET|PASSWORD|TOKEN|KEY", argument.upper())
        assert name != "ADD"


def test_the_image_copies_the_code_and_the_lock_and_nothing_else() -> None:
    copied = {
        source
        for name, argument in instructions(DEPLOY / "Containerfile")
        if name == "COPY"
        for source in argument.split()[1:-1]
    }
    assert copied == {
        "requirements.lock",
        "pyproject.toml",
        "detector",
        "cluster",
        "tune",
        "pipelines",
    }
    allowed = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    assert "*" in allowed
    assert {line.removeprefix("!").split("/")[0] for line in allowed if line[:1] == "!"} == copied


def test_the_layers_of_packages_share_the_lock_between_them(tmp_path: Path) -> None:
    """Each package is in exactly one layer, with its hashes; the one that a build without CUDA
    leaves out has nothing but torch and what it brings of NVIDIA.
    """
    (split,) = re.findall(r"awk '.*?' requirements\.lock", (DEPLOY / "Containerfile").read_text())
    (tmp_path / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    subprocess.run(shlex.split(split), cwd=tmp_path, check=True)
    parts = [(tmp_path / name).read_text() for name in ("torch.lock", "rest.lock")]
    pinned = [re.findall(r"^([a-z0-9-]+)==", part, re.MULTILINE) for part in parts]
    assert sorted(pinned[0] + pinned[1]) == sorted(LOCK)
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13"} <= set(pinned[0])
    assert all(re.match("cuda-|nvidia-|torch|triton", name) for name in pinned[0])
    lock = (ROOT / "requirements.lock").read_text()
    assert sum(part.count("--hash=") for part in parts) == lock.count("    --hash=")


def test_versions_are_those_of_the_project_and_of_its_lock() -> None:
    for path in FILES:
        text = path.read_text()
        assert set(re.findall(r"retinaray:(\d[\d.]+)-", text)) <= {VERSION}, path
        assert set(re.findall(r"retinaray-mlflow:(\S+)", text)) <= {LOCK["mlflow"]}, path
        for package in ("mlflow", "boto3", "ray"):
            assert set(re.findall(rf"\b{package}==([\d.]+)", text)) <= {LOCK[package]}, path
        assert set(re.findall(r'rayVersion: "?([\d.]+)', text)) <= {LOCK["ray"]}, path


def test_no_file_holds_a_secret() -> None:
    for path in FILES:
        for line in path.read_text().splitlines():
            found = re.search(r"(?:PASSWORD|SECRET|TOKEN|KEY)\w*['\"]?\s*[:=]\s*(\S+)", line)
            if found and not path.name.endswith((".dockerignore",)):
                # Of the environment, of a Secret, a path, or made when the command is typed.
                assert re.match(r"\$|/|~|token\b|\[", found[1]), f"{path}: {line}"
        assert not re.search(r"://[^/\s:]+:[^@/\s$]+@", path.read_text()), path


def test_compose_opens_mlflow_to_this_machine_only_and_sizes_are_those_of_docker() -> None:
    (compose,) = documents(DEPLOY / "mlflow" / "compose.yaml")
    services: dict[str, Any] = compose["services"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert "ports" not in services["database"]
    for service in services.values():
        assert service["restart"] == "unless-stopped"
        for name in ("shm_size", "mem_limit"):
            assert DOCKER_SIZE.fullmatch(str(service.get(name, "0"))), name
    assert services["mlflow"]["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_the_unit_comes_back_after_every_end_that_another_try_may_mend() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(DEPLOY / "systemd" / "retinaray-train.service")
    service = unit["Service"]
    kinds = [kind for kind in vars(cluster.errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, cluster.errors.PlainError)}
    final = {int(code) for code in service["RestartPreventExitStatus"].split()}
    # 1: machines failed; 5: interrupted.
    assert final == codes - {1, 5}
    assert service["Restart"] == "on-failure" and unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["User"] != "root" and "pipelines.train" in service["ExecStart"]
