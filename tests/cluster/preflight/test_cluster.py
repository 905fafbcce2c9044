"""Every node of a cluster is asked, on the node itself."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UsageError
from cluster.preflight import cluster
from cluster.preflight.cluster import (
    check_doors,
    check_nodes,
    locked_versions,
    refuse_unfit_nodes,
)
from cluster.preflight.node import Space


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need a minute for a node's first process."""
    monkeypatch.setattr(cluster, "ANSWER_S", 900.0)


def test_the_nodes_of_a_cluster_are_asked(ray_cluster: str, bucket: str) -> None:
    findings = {finding.check: finding for finding in check_nodes(f"{bucket}/store")}
    assert set(findings) == {
        *("python", "packages", "gpus", "memory", "disk", "clock", "storage", "token", "doors")
    }
    assert findings["storage"].state == "ok", findings["storage"].line()
    assert "clock within" in findings["clock"].figure


def test_a_missing_bucket_fails_on_the_node_with_the_remedy(ray_cluster: str) -> None:
    findings = {finding.check: finding for finding in check_nodes("s3://no-such-bucket/store")}
    assert findings["storage"].state == "fail"
    assert "there is no bucket" in findings["storage"].figure
    assert "create it" in findings["storage"].remedy


def test_a_node_that_is_gone_is_a_line_and_the_others_are_judged(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    gone = {**ray.nodes()[0], "NodeID": "e" * 56, "NodeManagerAddress": "10.9.9.9"}
    both = [*ray.nodes(), gone]
    monkeypatch.setattr(cluster, "alive_nodes", lambda: both)
    findings = check_nodes(str(tmp_path))
    (lost,) = (finding for finding in findings if finding.check == "node")
    assert lost.state == "fail" and lost.figure.startswith("10.9.9.9 (eeeeee): ")
    assert "raylet.err" in lost.remedy
    assert {finding.check for finding in findings} > {"storage", "packages"}


def test_a_node_that_takes_too_long_is_a_warning(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 0.0)
    late, doors = check_nodes(str(tmp_path))
    assert (late.state, late.check, doors.check) == ("warn", "node", "doors")
    assert "no answer within 0 s" in late.figure


def test_before_work_a_full_disk_of_this_machine_is_found_without_a_task(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.measured, "disk", lambda: Space(100, 1))
    monkeypatch.setattr(cluster.measured, "shared_memory", lambda: None)
    monkeypatch.setattr(cluster, "_ask", lambda *_: pytest.fail("one node: nothing can differ"))
    with pytest.raises(UsageError, match=r"^disk: .* 0.0 GiB free.*du -sh"):
        refuse_unfit_nodes(str(tmp_path), gpus=False)


def test_a_driver_that_is_too_old_stops_only_work_that_needs_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cluster.preflight.finding import Finding

    found = [Finding("fail", "gpus", "n: old", "new"), Finding("ok", "disk", "n: much")]
    monkeypatch.setattr(cluster, "alive_nodes", lambda: [{}, {}])
    monkeypatch.setattr(cluster, "check_nodes", lambda _: found)
    said: list[str] = []
    with pytest.raises(UsageError, match="^gpus: n: old; new$"):
        refuse_unfit_nodes("x", gpus=True, say=said.append)
    refuse_unfit_nodes("x", gpus=False, say=said.append)
    assert said == ["warning: gpus: n: old; new"]


def head_at(address: str) -> list[dict[str, Any]]:
    return [{"NodeManagerAddress": address, "Resources": {cluster.HEAD: 1.0}}]


@pytest.mark.parametrize(("address", "state"), [("10.0.0.7", "warn"), ("8.8.8.8", "fail")])
def test_a_dashboard_that_others_reach_is_a_fault_without_a_token(
    address: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_answers", lambda host, port: port == 8265)
    assert check_doors(head_at("127.0.0.1"), token=False).state == "ok"
    assert check_doors(head_at(address), token=True).state == "ok"
    opened = check_doors(head_at(address), token=False)
    assert opened.state == state
    assert f"whoever reaches dashboard at {address}:8265 runs code" in opened.figure
    assert "--dashboard-host=127.0.0.1" in opened.remedy


def test_a_door_is_open_where_something_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert cluster._answers("127.0.0.1", port)
    assert not cluster._answers("127.0.0.1", port)


def test_the_lock_is_read_and_may_be_missing(tmp_path: Path) -> None:
    lock = locked_versions(cluster.ROOT / "requirements.lock")
    assert lock["ray"].startswith("2.") and lock["torch"] and len(lock) > 100
    assert locked_versions(tmp_path / "requirements.lock") == {}
