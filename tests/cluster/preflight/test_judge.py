"""Every fault of a node is one line with its figure and the command that mends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.errors import UsageError
from cluster.preflight.finding import Finding, refuse_failed
from cluster.preflight.judge import Driver, Node, cuda_line, judge
from cluster.preflight.node import Graphics, NodeReport, Space
from cluster.preflight.storage_speed import StorageSpeed

GIB = 1 << 30
PACKAGES = {"ray": "2.60.0", "torch": "2.15.0", "nvidia-cuda-runtime": "13.2.86", "pandas": "3.0"}
DRIVER = Driver("3.11.9", PACKAGES, PACKAGES)
HEALTHY = NodeReport(
    node="10.0.0.7",
    python="3.11.2",
    packages=PACKAGES,
    graphics=Graphics(("NVIDIA L4",), "580.95.05"),
    shared_memory=Space(8 * GIB, 7 * GIB),
    disk=Space(200 * GIB, 150 * GIB),
    token=True,
    storage=StorageSpeed(0.01, 50e6, 80e6, True),
)
NODE = Node(HEALTHY, gpus=1, object_store=6 * GIB)


def wrong(*nodes: Node) -> list[Finding]:
    return [finding for finding in judge(nodes, DRIVER) if finding.state != "ok"]


def test_nodes_that_are_fine_share_one_line_for_each_check() -> None:
    findings = judge([NODE, NODE, NODE], DRIVER)
    assert [finding.state for finding in findings] == ["ok"] * 8
    assert all("3 nodes, " in finding.figure and not finding.remedy for finding in findings)
    assert findings[-2].figure == "3 nodes, list 10 ms, write 50 MB/s, read 80 MB/s"


def test_nodes_with_the_same_fault_share_a_line_and_another_fault_has_its_own() -> None:
    def named(name: str, **changes: object) -> Node:
        return replace(NODE, report=replace(HEALTHY, node=name, **changes))

    bad = with_packages(pandas="2.2")
    first, second = wrong(
        named("a"),
        named("b", packages=bad),
        named("c", packages=bad),
        named("d", packages=with_packages(pandas="1.5")),
    )
    assert first.figure == "b and 1 more: pandas 2.2 (lock 3.0)"
    assert second.figure == "d: pandas 1.5 (lock 3.0)"


def test_a_build_without_cuda_is_the_same_version_of_torch() -> None:
    cpu = {"ray": "2.60.0", "torch": "2.15.0+cpu"}
    assert not wrong(NODE, Node(replace(HEALTHY, packages=cpu, graphics=None)))


def with_packages(**versions: str) -> dict[str, str]:
    return {**PACKAGES, **versions}


@pytest.mark.parametrize(
    ("faulty", "state", "check", "figure", "remedy"),
    [
        ({"python": "3.12.1"}, "fail", "python", "Python 3.12.1, the driver has 3.11.9", "uv venv"),
        (
            {"packages": with_packages(ray="2.59.0")},
            "fail",
            "packages",
            "ray 2.59.0 (driver 2.60.0)",
            "uv pip sync --require-hashes requirements.lock",
        ),
        (
            {"packages": {"ray": "2.60.0"}, "graphics": None},
            "fail",
            "packages",
            "torch missing (driver 2.15.0)",
            "uv pip sync",
        ),
        (
            {"packages": with_packages(pandas="2.2")},
            "warn",
            "packages",
            "pandas 2.2 (lock 3.0)",
            "uv pip sync",
        ),
        (
            {"graphics": Graphics(("NVIDIA L4",), "535.54.03")},
            "fail",
            "gpus",
            "1 x NVIDIA L4, driver 535.54.03; CUDA 13 of torch needs 580 or newer",
            "apt-get install nvidia-driver-580-server",
        ),
        (
            {"shared_memory": Space(64 << 20, 1 << 20)},
            "fail",
            "memory",
            "/dev/shm has 0.0 GiB free of 0.1 GiB",
            # 6 GiB of objects x 1.1 = 6.6
            "--shm-size=7gb",
        ),
        (
            {"shared_memory": Space(4 * GIB, 4 * GIB)},
            "warn",
            "memory",
            "Ray keeps 6.0 GiB for objects, so they lie on disk",
            "--shm-size=7gb",
        ),
        ({"disk": Space(100 * GIB, 4 * GIB)}, "fail", "disk", "4.0 GiB free of 100.0", "du -sh"),
        ({"disk": Space(100 * GIB, 8 * GIB)}, "warn", "disk", "8.0 GiB free of 100.0", "10 GiB"),
        ({"token": False}, "warn", "token", "asks for no token", "RAY_AUTH_MODE=token"),
        (
            {"storage": "s3://gone/x: there is no bucket gone; create it"},
            "fail",
            "storage",
            "10.0.0.7: s3://gone/x: there is no bucket gone",
            "create it",
        ),
        (
            {"storage": StorageSpeed(0.01, 50e6, 80e6, False)},
            "warn",
            "storage",
            "of two writers the last one wins",
            "conditional writes",
        ),
    ],
)
def test_a_fault_of_one_node_is_one_line_that_names_it_with_the_remedy(
    faulty: dict[str, object], state: str, check: str, figure: str, remedy: str
) -> None:
    bad = replace(
        NODE,
        report=replace(HEALTHY, **faulty),
        gpus=0 if "graphics" in faulty and faulty["graphics"] is None else 1,
    )
    (finding,) = wrong(NODE, bad, NODE)
    assert (finding.state, finding.check) == (state, check)
    assert finding.figure.startswith("10.0.0.7") and figure in finding.figure
    assert remedy in finding.remedy
    assert "\n" not in finding.line()


@pytest.mark.parametrize(
    ("ahead", "error", "state"),
    [(-400, 0.1, "fail"), (61, 0.5, "fail"), (61, 2, "warn"), (3, 0.1, "warn"), (3, 2, "ok")],
)
def test_a_clock_is_off_only_by_what_the_time_of_the_question_cannot_explain(
    ahead: float, error: float, state: str
) -> None:
    findings = judge([replace(NODE, clock_s=ahead, clock_error_s=error)], DRIVER)
    (clock,) = (finding for finding in findings if finding.check == "clock")
    assert clock.state == state
    assert state == "ok" or "timedatectl set-ntp true" in clock.remedy


def test_gpus_that_ray_counts_must_be_there_and_others_are_a_warning() -> None:
    (lost,) = wrong(replace(NODE, gpus=4))
    assert lost.state == "fail" and "Ray counts 4 GPUs, nvidia-smi shows 1" in lost.figure
    (idle,) = wrong(replace(NODE, gpus=0))
    assert idle.state == "warn" and "ray start --num-gpus 1" in idle.remedy


def test_the_cuda_line_is_that_of_the_packages_beside_torch() -> None:
    assert cuda_line({"nvidia-cuda-runtime": "13.2.86"}) == 13
    assert cuda_line({"nvidia-cuda-runtime-cu12": "12.8.90"}) == 12
    assert cuda_line({"torch": "2.15.0+cpu"}) is None


def test_a_machine_alone_needs_no_token() -> None:
    assert not wrong(replace(NODE, report=replace(HEALTHY, token=False)))


def test_the_first_failure_stops_the_work_and_says_how_many_there_are() -> None:
    refuse_failed([Finding("ok", "a", "f"), Finding("warn", "b", "f", "r")])
    failures = [Finding("fail", "disk", "n: full", "empty it"), Finding("fail", "gpus", "g", "h")]
    with pytest.raises(
        UsageError, match=r"^disk: n: full; empty it \(1 more failed: retinaray preflight"
    ):
        refuse_failed(failures)
