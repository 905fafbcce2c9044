"""Where bfloat16 is taken: on hardware that gains by it, whatever torch says it can do."""

from __future__ import annotations

import pytest
import torch

from detector import precision


@pytest.mark.parametrize(
    ("supported", "tiles", "intel", "gains"),
    [
        (False, False, False, False),  # AVX2 alone
        (True, False, False, True),  # AMD with AVX-512 bfloat16
        (True, True, True, True),  # Intel with AMX
        (True, False, True, False),  # Intel without, or in a virtual machine that hides it
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, supported: bool, tiles: bool, intel: bool, gains: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(precision, "_is_intel", lambda: intel)
    cpu = torch.device("cpu")
    assert precision.computes_bfloat16(cpu) == gains
    assert (
        precision.autocast_dtype(cpu, amp=True) == (torch.bfloat16 if gains else None)
        and precision.autocast_dtype(cpu, amp=False) is None
    )


@pytest.mark.parametrize("emulated", [False, True])
def test_a_gpu_that_emulates_it_does_without(
    monkeypatch: pytest.MonkeyPatch, emulated: bool
) -> None:
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: including_emulation or not emulated,
    )
    assert precision.computes_bfloat16(torch.device("cuda")) != emulated
