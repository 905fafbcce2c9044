"""Whether what nodes report is fit for work. Pure: reports in, findings out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.preflight.finding import Finding, parted
from cluster.preflight.node import NodeReport, Space

FEWEST_DRIVERS = {12: 525, 13: 580}
"""The oldest driver for a CUDA line (NVIDIA, CUDA compatibility, minor version compatibility)."""
MUST_EQUAL = ("ray", "torch", "torchvision", "pyarrow", "pydantic")
"""Packages whose objects travel between nodes, or that compute the same model on all of them."""
SYNC = "uv pip sync --require-hashes requirements.lock"
GIB = 1 << 30


@dataclass(frozen=True)
class Node:
    """A node that answered: what it reports, and what Ray and the driver know of it."""

    report: NodeReport
    gpus: float = 0.0
    """That Ray counts."""
    object_store: int = 0
    """Bytes that Ray keeps for objects."""
    clock_s: float = 0.0
    """How far its clock is ahead of the driver's."""
    clock_error_s: float = 0.0


@dataclass(frozen=True)
class Driver:
    """What the nodes are compared with: the driver's Python, its packages, and its lock file."""

    python: str
    packages: Mapping[str, str]
    lock: Mapping[str, str]


def judge(nodes: Sequence[Node], driver: Driver) -> list[Finding]:
    """Every check of every node. What is the same on several nodes is one line."""
    checks: list[Callable[[Node], Finding]] = [
        lambda node: check_python(node, driver),
        lambda node: check_packages(node, driver),
        check_graphics,
        lambda node: check_shared_memory(
            node.report.node, node.report.shared_memory, node.object_store
        ),
        lambda node: check_disk(node.report.node, node.report.disk),
        check_clock,
        check_storage,
        lambda node: check_token(node, len(nodes)),
    ]
    findings = []
    for check in checks:
        each = [check(node) for node in nodes]
        wrong = [finding for finding in each if finding.state != "ok"]
        findings += _grouped(wrong) if wrong else [_merged(each)]
    return findings


def _grouped(wrong: Sequence[Finding]) -> list[Finding]:
    """One line for nodes with the same fault: the first one's name, and how many more they are."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in wrong:
        groups.setdefault((finding.figure.partition(": ")[2], finding.remedy), []).append(finding)
    lines = []
    for (fault, _), same in groups.items():
        name = same[0].figure.partition(": ")[0]
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        lines.append(replace(same[0], figure=f"{name}{more}: {fault}"))
    return lines


def _merged(each: Sequence[Finding]) -> Finding:
    """One line for nodes that are all fine: the first one's figure, and how many they are."""
    first = each[0]
    if len(each) == 1:
        return first
    same = {finding.figure.partition(": ")[2] for finding in each}
    figure = first.figure.partition(": ")[2] if len(same) == 1 else f"such as {first.figure}"
    return Finding("ok", first.check, f"{len(each)} nodes, {figure}")


def check_python(node: Node, driver: Driver) -> Finding:
    name, python = node.report.node, node.report.python
    if python.split(".")[:2] != driver.python.split(".")[:2]:
        return Finding(
            "fail",
            "python",
            f"{name}: Python {python}, the driver has {driver.python}",
            f"make the environment there again: uv venv --python {driver.python} .venv",
        )
    return Finding("ok", "python", f"{name}: Python {python}")


def check_packages(node: Node, driver: Driver) -> Finding:
    """The packages of `MUST_EQUAL` are those of the driver. All others that the node has are those
    of the lock; a node needs no tools of developers.
    """
    name, has = node.report.node, node.report.packages
    must = [
        f"{package} {has.get(package, 'missing')} (driver {driver.packages[package]})"
        for package in MUST_EQUAL
        if package in driver.packages
        and not _same_version(has.get(package, ""), driver.packages[package])
    ]
    other = [
        f"{package} {has[package]} (lock {version})"
        for package, version in driver.lock.items()
        if package in has and not _same_version(has[package], version)
    ]
    if not must and not other:
        both = len(driver.lock.keys() & has.keys())
        return Finding("ok", "packages", f"{name}: {both} packages as in the lock")
    wrong = must or other
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    figure = f"{name}: {', '.join(wrong[:3])}{more}"
    return Finding("fail" if must else "warn", "packages", figure, f"run there: {SYNC}")


def _same_version(one: str, locked: str) -> bool:
    """Builds of a version, such as 2.9.0+cpu, are the same version."""
    return one.partition("+")[0] == locked.partition("+")[0]


def check_graphics(node: Node) -> Finding:
    report, graphics = node.report, node.report.graphics
    seen = len(graphics.names) if graphics else 0
    if node.gpus > seen:
        return Finding(
            "fail",
            "gpus",
            f"{report.node}: Ray counts {node.gpus:g} GPUs, nvidia-smi shows {seen}",
            "look at `nvidia-smi` there: install the driver, or give the container its GPUs with"
            " --gpus all",
        )
    if graphics is None:
        return Finding("ok", "gpus", f"{report.node}: no GPU")
    figure = f"{report.node}: {seen} x {graphics.names[0]}, driver {graphics.driver}"
    if node.gpus < seen:
        return Finding(
            "warn",
            "gpus",
            f"{figure}, of which Ray counts {node.gpus:g}",
            f"start the node with `ray start --num-gpus {seen}`",
        )
    line = cuda_line(report.packages)
    if line is None:
        return Finding("warn", "gpus", f"{figure}; torch without CUDA", f"run there: {SYNC}")
    fewest = FEWEST_DRIVERS.get(line, max(FEWEST_DRIVERS.values()))
    if int(graphics.driver.partition(".")[0]) < fewest:
        return Finding(
            "fail",
            "gpus",
            f"{figure}; CUDA {line} of torch needs {fewest} or newer",
            f"install it there: sudo apt-get install nvidia-driver-{fewest}-server, or start the"
            " nodes from a newer machine image",
        )
    return Finding("ok", "gpus", f"{figure}, CUDA {line}")


def cuda_line(packages: Mapping[str, str]) -> int | None:
    """The CUDA line, such as 13, that torch brings along; None for a build without CUDA."""
    for package, version in packages.items():
        if package == "nvidia-cuda-runtime":
            return int(version.partition(".")[0])
        if named := re.fullmatch(r"nvidia-cuda-runtime-cu(\d+)", package):
            return int(named[1])
    return None


def check_shared_memory(name: str, space: Space | None, object_store: int = 0) -> Finding:
    """The object store lies in /dev/shm where it fits, else on a disk, which is slow.
    `object_store`: bytes that Ray keeps for it.
    """
    if space is None:
        return Finding("ok", "memory", f"{name}: no /dev/shm on this system")
    figure = f"{name}: /dev/shm has {_shown(space.free)} free of {_shown(space.total)}"
    # Ray wants a tenth more than the store.
    container = f"--shm-size={max(1, round(object_store * 1.1 / GIB))}gb"
    if space.free < max(space.total * 0.02, 32 << 20):
        return Finding(
            "fail",
            "memory",
            figure,
            f"see what fills it with `ls -lS /dev/shm`; start a container with {container}",
        )
    if space.total < object_store:
        return Finding(
            "warn",
            "memory",
            f"{figure}, Ray keeps {_shown(object_store)} for objects, so they lie on disk",
            f"start the container with {container}",
        )
    return Finding("ok", "memory", figure)


def check_disk(name: str, space: Space) -> Finding:
    figure = f"{name}: {_shown(space.free)} free of {_shown(space.total)}"
    # Ray fails tasks on a node whose disk is 95 % full.
    if space.free < 0.05 * space.total:
        return Finding(
            "fail",
            "disk",
            figure,
            "Ray runs nothing on a disk that is 95 % full: `du -sh /tmp/ray/session_*` shows old"
            " sessions, which may be deleted",
        )
    if space.free < 10 * GIB:
        return Finding("warn", "disk", figure, "checkpoints are staged there: free 10 GiB")
    return Finding("ok", "disk", figure)


def check_clock(node: Node) -> Finding:
    """S3 refuses requests whose time is 15 minutes off; times in MLflow and in logs mislead long
    before.
    """
    name, off = node.report.node, abs(node.clock_s)
    least = max(0.0, off - node.clock_error_s)
    figure = f"{name}: clock {node.clock_s:+.1f} s against the driver"
    remedy = "set the clock there: sudo timedatectl set-ntp true"
    if least > 60:
        return Finding("fail", "clock", figure, remedy)
    if least > 2:
        return Finding("warn", "clock", figure, remedy)
    return Finding("ok", "clock", f"{name}: clock within {max(off, 0.1):.1f} s of the driver")


def check_storage(node: Node) -> Finding:
    name, storage = node.report.node, node.report.storage
    if isinstance(storage, str):
        fault, remedy = parted(storage)
        return Finding("fail", "storage", f"{name}: {fault}", remedy)
    figure = (
        f"{name}: list {storage.list_s * 1e3:.0f} ms, write {storage.write_rate / 1e6:.0f} MB/s,"
        f" read {storage.read_rate / 1e6:.0f} MB/s"
    )
    if not storage.first_writer_wins:
        return Finding(
            "warn",
            "storage",
            f"{figure}; of two writers the last one wins",
            "do not run two drivers of one name at once, or use a store with conditional writes",
        )
    return Finding("ok", "storage", figure)


def check_token(node: Node, nodes: int) -> Finding:
    name = node.report.node
    if node.report.token:
        return Finding("ok", "token", f"{name}: asks for a token")
    if nodes == 1:
        return Finding("ok", "token", f"{name}: no other node")
    return Finding(
        "warn",
        "token",
        f"{name}: asks for no token, so whoever reaches its ports runs code on it",
        "start all nodes with RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ray/auth_token ray start",
    )


def _shown(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
