"""Asks every node of a cluster at the same time, each by a task that may run on that node only."""

from __future__ import annotations

import ipaddress
import platform
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.compute.resources import alive_nodes
from cluster.preflight import node as measured
from cluster.preflight.finding import Finding, State, refuse_failed
from cluster.preflight.judge import Driver, Node, check_disk, check_shared_memory, judge
from cluster.preflight.pinned import on_node
from cluster.preflight.storage_speed import marked
from cluster.storage.uris import absolute

ANSWER_S = 120.0
"""A node's first task waits for a process that imports Ray, 2 to 10 s, and for the storage. A node
that is busy takes longer, so no answer is a warning.
"""
HEAD = "node:__internal_head__"
"""The resource by which Ray marks the head."""
DOORS = {8265: "dashboard", 10001: "Ray client"}
DOOR_S = 1.0
ROOT = Path(__file__).parents[2]


def check_this_machine(storage: str) -> list[Finding]:
    """The checks of this machine alone, without Ray."""
    with marked(storage) as marker:
        report = measured.measure(socket.gethostname(), storage, marker)
    # Ray takes all GPUs that it finds.
    gpus = len(report.graphics.names) if report.graphics else 0
    return judge([Node(report, gpus=gpus)], _this_driver())


def check_nodes(storage: str) -> list[Finding]:
    """The checks of every node of the cluster that this process is connected to. A node that does
    not answer is a finding.
    """
    alive, storage = alive_nodes(), absolute(storage)
    with marked(storage) as marker:
        answered, findings = _ask(alive, storage, marker)
    if answered:
        findings += judge(answered, _this_driver())
    token = all(node.report.token for node in answered)
    return [*findings, check_doors(alive, token)]


def refuse_unfit_nodes(storage: str, *, gpus: bool, say: Callable[[str], None] = print) -> None:
    """What is wrong, in short, before machines are spent: `say` gets a line for each warning, and
    `UsageError` names the first failure. On a cluster of one node nothing can differ, so only disk
    and shared memory are looked at. `gpus`: the work needs some; else a fault of theirs is a
    warning.
    """
    if len(alive_nodes()) > 1:
        findings = check_nodes(storage)
    else:
        here = socket.gethostname()
        shm, disk = measured.shared_memory(), measured.disk()
        findings = [check_shared_memory(here, shm), check_disk(here, disk)]
    if not gpus:
        findings = [_warning_of(f) if f.check == "gpus" else f for f in findings]
    for finding in findings:
        if finding.state == "warn":
            say(f"warning: {finding.check}: {finding.text}")
    refuse_failed(findings)


def _warning_of(finding: Finding) -> Finding:
    return replace(finding, state="warn") if finding.state == "fail" else finding


def _this_driver() -> Driver:
    return Driver(
        platform.python_version(),
        measured.installed_packages(),
        locked_versions(ROOT / "requirements.lock"),
    )


def _ask(
    alive: Sequence[Mapping[str, Any]], storage: str, marker: str
) -> tuple[list[Node], list[Finding]]:
    import ray
    from ray.exceptions import RayError

    tasks = {
        _on(node, measured.measure).remote(_name(node), storage, marker): node for node in alive
    }
    ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=ANSWER_S)
    silent: dict[str, tuple[State, str]] = {
        tasks[task]["NodeID"]: ("warn", f"no answer within {ANSWER_S:g} s") for task in late
    }
    answered = []
    for task in ready:
        node = tasks[task]
        try:
            report = ray.get(task)
            ahead, error = _clock(node)
        except RayError as failure:
            silent[node["NodeID"]] = ("fail", str(failure).strip().splitlines()[-1])
            continue
        resources = node["Resources"]
        answered.append(
            Node(
                report,
                gpus=resources.get("GPU", 0.0),
                object_store=int(resources.get("object_store_memory", 0)),
                clock_s=ahead,
                clock_error_s=error,
            )
        )
    for task in late:
        ray.cancel(task, force=True)
    # A node that has left meanwhile is none of the cluster any more.
    still = [node for node in alive_nodes() if node["NodeID"] in silent]
    return answered, [_silent(node, *silent[node["NodeID"]]) for node in still]


def _on(node: Mapping[str, Any], function: Callable[..., Any]) -> Any:
    # A process that dies once is no fault of the node.
    return on_node(function, node["NodeID"], retries=2)


def _clock(node: Mapping[str, Any]) -> tuple[float, float]:
    """How far the node's clock is ahead of this one's, and the error of it: half of the time of
    question and answer. The process that answers is there already.
    """
    import ray

    before = time.time()
    there: Any = ray.get(_on(node, measured.now).remote(), timeout=ANSWER_S)
    after = time.time()
    return there - (before + after) / 2, (after - before) / 2


def _name(node: Mapping[str, Any]) -> str:
    """The address, and where several nodes share one machine the id too."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _silent(node: Mapping[str, Any], state: State, why: str) -> Finding:
    return Finding(
        state,
        "node",
        f"{_name(node)}: {why}",
        "look at /tmp/ray/session_latest/logs/raylet.err there, and start it again with `ray start"
        " --address HEAD:6379`",
    )


def check_doors(alive: Sequence[Mapping[str, Any]], token: bool) -> Finding:
    """Whether the dashboard or the port of Ray's client answers at the head's address: Ray runs any
    code that comes in there. With a token it asks for that first.
    """
    heads = [node["NodeManagerAddress"] for node in alive if HEAD in node["Resources"]]
    is_open = [
        f"{name} at {host}:{port}"
        for host in heads
        if not ipaddress.ip_address(host).is_loopback
        for port, name in DOORS.items()
        if _answers(host, port)
    ]
    if not is_open:
        return Finding("ok", "doors", f"{' and '.join(DOORS.values())} are closed to others")
    if token:
        return Finding("ok", "doors", f"{' and '.join(is_open)} ask for the token")
    public = any(ipaddress.ip_address(host).is_global for host in heads)
    return Finding(
        "fail" if public else "warn",
        "doors",
        f"whoever reaches {' or '.join(is_open)} runs code on the cluster",
        "start all nodes with RAY_AUTH_MODE=token, the head with --dashboard-host=127.0.0.1, and"
        " close the ports in the firewall",
    )


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=DOOR_S).close()
    except OSError:
        return False
    return True


def locked_versions(path: Path) -> dict[str, str]:
    """Version by package of a lock file; empty where there is none, as beside an installed copy."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text, re.MULTILINE))
