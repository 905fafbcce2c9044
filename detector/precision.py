"""Which dtype the network computes in on a device."""

from __future__ import annotations

import torch


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic. Where it has none torch answers all the same, slowly: on a CPU without AVX-512 convolutions leave
    oneDNN and a step takes six times as long as in float32 (ResNet-18, 2 x 96x128, one core: 1.8 s and 0.3 s); GPUs before Ampere emulate it.
    """
    if device.type == "cpu":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def autocast_dtype(device: torch.device, *, amp: bool) -> torch.dtype | None:
    """bfloat16 where it is wanted and the device computes in it; None is float32."""
    return torch.bfloat16 if amp and computes_bfloat16(device) else None
