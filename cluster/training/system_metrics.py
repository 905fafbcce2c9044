"""What CPUs, memory and GPUs of a node do while it trains."""

from __future__ import annotations

import contextlib

import psutil
import torch


def system_metrics(device: torch.device, *, node: bool) -> dict[str, float]:
    """What MLflow's own monitor would log, under its names. That one sees the driver's machine
    alone, and loses what a dead server does not take.

    `node`: CPUs and memory, which one rank a node reports; of its GPU each rank reports itself. The
    GPU's utilisation needs nvidia-ml-py.
    """
    metrics = {}
    if node:
        memory = psutil.virtual_memory()
        metrics = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
        }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        gpu = f"gpu_{device.index or 0}"
        metrics[f"{gpu}_memory_usage_megabytes"] = (total - free) / 1e6
        metrics[f"{gpu}_memory_usage_percentage"] = 100 * (total - free) / total
        with contextlib.suppress(ImportError, RuntimeError):
            metrics[f"{gpu}_utilization_percentage"] = float(torch.cuda.utilization(device))
    return metrics
