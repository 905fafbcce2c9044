"""What a device computes fast."""

from __future__ import annotations

import torch


def autocast_dtype(amp: bool, device: torch.device) -> torch.dtype | None:
    """bfloat16 where it is asked for and `device` has instructions for it; else None, float32.

    A CPU without them (before AVX-512) does the convolutions of bfloat16 one number after the other: a training step of ResNet-18 took more than
    twenty times as long as in float32.
    """
    native = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if amp and native else None
