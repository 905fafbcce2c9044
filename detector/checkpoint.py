"""A checkpoint is a directory: model.safetensors, ema.safetensors, optimizer.pt, state.json. Nothing in it is pickled code."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detector.optimizer import MovingAverage

STATE_FILE = "state.json"
"""Written last: a directory without it is not a checkpoint."""
ANCHORS = "anchors"


def save_checkpoint(folder: str, *, model: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage | None, state: dict[str, Any]) -> None:
    """Write everything needed to go on. `state` is plain JSON: counters, data position, config, digests; `average_seen` is added.

    The weight files say in their metadata, as JSON under `ANCHORS`, which anchors a RetinaNet was trained with: its tensors do not show it.
    """
    os.makedirs(folder, exist_ok=True)
    anchors = {ANCHORS: json.dumps(model.anchor_shapes)} if hasattr(model, "anchor_shapes") else None
    save_file(contiguous(model.state_dict()), os.path.join(folder, "model.safetensors"), metadata=anchors)
    if average is not None:
        save_file(contiguous(average.state), os.path.join(folder, "ema.safetensors"), metadata=anchors)
    torch.save(optimizer.state_dict(), os.path.join(folder, "optimizer.pt"))
    with open(os.path.join(folder, STATE_FILE), "w", encoding="utf-8") as file:
        json.dump({**state, "average_seen": average.seen if average else 0.0}, file, indent=1, allow_nan=False)


def load_checkpoint(folder: str, *, model: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage | None) -> dict[str, Any]:
    """Put a checkpoint's weights, optimiser and average back in place and return its state.

    Raises `ValueError` where the weights belong to another network.
    """
    with open(os.path.join(folder, STATE_FILE), encoding="utf-8") as file:
        state = json.load(file)
    load_weights(model, os.path.join(folder, "model.safetensors"))
    optimizer.load_state_dict(torch.load(os.path.join(folder, "optimizer.pt"), weights_only=True, map_location="cpu"))
    if average is not None:
        saved = load_file(os.path.join(folder, "ema.safetensors"))
        for name, tensor in average.state.items():
            tensor.copy_(saved[name])
        average.seen = state["average_seen"]
    return state


def anchors_in(path: str) -> dict[str, Any]:
    """`RetinaNet.anchor_shapes` of the network that a safetensors file was saved of; empty where the file does not say."""
    with safe_open(path, framework="pt") as file:
        said = json.loads((file.metadata() or {}).get(ANCHORS, "{}"))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}


def load_weights(model: nn.Module, path: str) -> None:
    """Load a safetensors file that must fit the model exactly; `ValueError` names the first names and shapes that do not."""
    weights = load_file(path)
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in weights] + [f"{k} is unknown" for k in weights if k not in own]
    wrong += [
        f"{k} is {tuple(weights[k].shape)} where the model has {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if wrong:
        raise ValueError(
            f"{path}: the weights are of another network ({'; '.join(wrong[:3])}; {len(wrong)} differences); "
            "use the configuration they were trained with"
        )
    model.load_state_dict(weights)


def contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors stores plain row-major tensors; channels-last weights are copied into that order."""
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}
