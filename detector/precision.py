"""The dtype in which the network computes on a device."""

from __future__ import annotations

from functools import lru_cache

import torch


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device is faster with bfloat16 arithmetic. torch also computes in bfloat16 on a
    device without it, but slowly: on a CPU without AVX-512 convolutions do not use oneDNN, and a
    step takes six times as long as in float32 (ResNet-18, 2 x 96x128, one core: 1.8 s and 0.3 s);
    GPUs before Ampere emulate it.

    Intel's CPUs are faster only with their tiles (AMX), which a virtual machine may hide. With
    AVX-512 a convolution ran at 0.17 TFLOP/s in bfloat16 and 0.33 in float32 on two cores, and a
    whole step made 1.34 instead of 2.08 images/s (ResNet-18, 4 x 320x320).
    """
    if device.type == "cpu":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported() and (
            torch.cpu._is_amx_tile_supported() or not _is_intel()
        )
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


@lru_cache(maxsize=1)
def _is_intel() -> bool:
    """According to Linux; False on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any(line.startswith("vendor_id") and "GenuineIntel" in line for line in file)
    except OSError:
        return False


def autocast_dtype(device: torch.device, *, amp: bool) -> torch.dtype | None:
    """bfloat16 where `amp` asks for it and the device is faster with it; None: float32."""
    return torch.bfloat16 if amp and computes_bfloat16(device) else None
