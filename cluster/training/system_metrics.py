"""Load of a node's CPUs, memory and GPUs while it trains."""

from __future__ import annotations

import contextlib

import psutil
import torch


class SystemMetrics:
    """What MLflow's own monitor would log, under its names. That monitor sees only the driver's
    machine, and loses what a dead server does not take.

    `node`: report CPUs and memory, which one rank of each node does; every rank reports its own
    GPU. The GPU's utilisation needs nvidia-ml-py.
    """

    def __init__(self, device: torch.device, *, node: bool):
        self._device, self._node = device, node
        # psutil measures from the call before.
        psutil.cpu_percent()

    def read(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self._node:
            memory = psutil.virtual_memory()
            metrics = {
                "cpu_utilization_percentage": psutil.cpu_percent(),
                "system_memory_usage_megabytes": memory.used / 1e6,
                "system_memory_usage_percentage": memory.percent,
            }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            gpu = f"gpu_{self._device.index or 0}"
            metrics[f"{gpu}_memory_usage_megabytes"] = (total - free) / 1e6
            metrics[f"{gpu}_memory_usage_percentage"] = 100 * (total - free) / total
            with contextlib.suppress(ImportError, RuntimeError):
                metrics[f"{gpu}_utilization_percentage"] = float(
                    torch.cuda.utilization(self._device)
                )
        return metrics
