"""Load of a node under the names of MLflow's own monitor."""

from __future__ import annotations

import pytest
import torch

from cluster.training.system_metrics import SystemMetrics

CPU = torch.device("cpu")


def test_system_metrics_have_mlflows_names() -> None:
    found = SystemMetrics(CPU, node=True).read()
    assert set(found) == {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "system_memory_usage_percentage",
    }
    assert 0 < found["system_memory_usage_percentage"] < 100
    assert SystemMetrics(CPU, node=False).read() == {}


def test_each_rank_reports_the_memory_of_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000_000, 4_000_000))

    def without_library(device: torch.device) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", without_library)
    expected = {"gpu_1_memory_usage_megabytes": 1.0, "gpu_1_memory_usage_percentage": 25.0}
    assert SystemMetrics(torch.device("cuda", 1), node=False).read() == expected
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 97)
    assert SystemMetrics(torch.device("cuda", 1), node=False).read() == {
        **expected,
        "gpu_1_utilization_percentage": 97.0,
    }
