"""A checkpoint is a directory: model.safetensors, ema.safetensors, optimizer.pt, state.json.
Nothing in it is pickled code.

state.json is written last. Its `files` are the size in bytes and the sha256 of all other files; its
`sha256` is that of the rest of its own content. So an incomplete or changed checkpoint is
recognised.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detector import json_text
from detector.anchors import PartialAnchorShapes
from detector.optimizer import MovingAverage

STATE_FILE = "state.json"
"""Written last: a directory without it is not a checkpoint."""
_ANCHORS = "anchors"


class Snapshot(NamedTuple):
    """A copy of the whole content of a checkpoint in this machine's memory: training continues
    while it is written.
    """

    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    metadata: dict[str, str] | None
    """Of the weight files: the anchors that a RetinaNet was trained with, as JSON under `_ANCHORS`.
    Its tensors do not show them.
    """
    state: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the tensors, which are nearly all of the files."""
        return sum(
            tensor.nbytes for tensor in _tensors_of([self.model, self.average, self.optimizer])
        )


def take_snapshot(
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    state: dict[str, Any],
    before: Snapshot | None = None,
) -> Snapshot:
    """Copy everything that is needed to continue. `state` is plain JSON: counters, data position,
    config, digests; `average_seen` is added.

    `before` is a snapshot of the same training that is no longer needed; its memory is reused: 0.05
    s instead of 0.3 s for a ResNet-50 with AdamW and an average (608 MB), most of which is the
    kernel's time for new pages.
    """
    model_copy, average_copy, optimizer_copy = _copied(
        [model.state_dict(), average.state if average else None, optimizer.state_dict()],
        [before.model, before.average, before.optimizer] if before else None,
    )
    anchors = (
        {_ANCHORS: json.dumps(model.anchor_shapes)} if hasattr(model, "anchor_shapes") else None
    )
    return Snapshot(
        model_copy,
        average_copy,
        optimizer_copy,
        anchors,
        {**state, "average_seen": average.seen if average else 0.0},
    )


def _copied(value: Any, before: Any) -> Any:
    """`value` with its tensors copied to the CPU: into the tensors of `before` at the same position
    where shape and dtype are equal, else into new ones.
    """
    if isinstance(value, Tensor):
        if isinstance(before, Tensor) and (before.shape, before.dtype) == (
            value.shape,
            value.dtype,
        ):
            return before.copy_(value.detach())
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {
            k: _copied(v, before.get(k) if isinstance(before, Mapping) else None)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [
            _copied(v, before[i] if isinstance(before, list) and i < len(before) else None)
            for i, v in enumerate(value)
        ]
    return value


def _tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    )
    return [tensor for part in parts for tensor in _tensors_of(part)]


def write_checkpoint(folder: str, snapshot: Snapshot) -> None:
    """Write all files of a checkpoint; the folder is made where it does not exist."""
    os.makedirs(folder, exist_ok=True)
    save_file(
        contiguous(snapshot.model),
        os.path.join(folder, "model.safetensors"),
        metadata=snapshot.metadata,
    )
    if snapshot.average is not None:
        save_file(
            contiguous(snapshot.average),
            os.path.join(folder, "ema.safetensors"),
            metadata=snapshot.metadata,
        )
    torch.save(snapshot.optimizer, os.path.join(folder, "optimizer.pt"))
    seal(folder, snapshot.state)


def seal(folder: str, state: dict[str, Any]) -> None:
    """Write state.json beside the files of the folder, with their digests and its own."""
    files = {
        name: _file_digest(os.path.join(folder, name))
        for name in sorted(os.listdir(folder))
        if name != STATE_FILE
    }
    # The digest is that of the content as it will be read: JSON has no tuples, and all its keys are
    # text.
    sealed = json.loads(json.dumps({**state, "files": files}, allow_nan=False))
    with open(os.path.join(folder, STATE_FILE), "w", encoding="utf-8") as file:
        json.dump({**sealed, "sha256": _state_digest(sealed)}, file, indent=1)


def _file_digest(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "bytes": os.path.getsize(path),
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _state_digest(state: Mapping[str, Any]) -> str:
    """sha256 of the state without its own `sha256`. It identifies a checkpoint, wherever it is."""
    content = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_state(data: bytes) -> dict[str, Any]:
    """The content of a state.json. `ValueError` where it differs from what was written, `KeyError`
    where it has no digest.
    """
    state = json_text.parse(data)
    if not isinstance(state, dict) or state["sha256"] != _state_digest(state):
        raise ValueError(f"{STATE_FILE}: sha256 mismatch")
    return state


def verify_checkpoint(folder: str) -> dict[str, Any]:
    """The state of a checkpoint after a check of every file. `ValueError` names the first file that
    is missing or differs from what was written; `KeyError` as in `parse_state`.
    """
    try:
        with open(os.path.join(folder, STATE_FILE), "rb") as file:
            state = parse_state(file.read())
        for name, written in state["files"].items():
            digest = _file_digest(os.path.join(folder, name))
            if digest["bytes"] != written["bytes"]:
                raise ValueError(f"{name}: has {digest['bytes']} bytes of {written['bytes']}")
            if digest != written:
                raise ValueError(f"{name}: sha256 mismatch")
    except FileNotFoundError as error:
        raise ValueError(f"{os.path.basename(error.filename)}: is missing") from error
    return state


def load_checkpoint(
    folder: str,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
) -> dict[str, Any]:
    """Load a checkpoint's weights, optimizer state and average, in place, and return its state.
    `ValueError` where the weights are of another network.
    """
    with open(os.path.join(folder, STATE_FILE), encoding="utf-8") as file:
        state = json_text.parse(file.read())
    load_weights(model, os.path.join(folder, "model.safetensors"))
    optimizer.load_state_dict(
        torch.load(os.path.join(folder, "optimizer.pt"), weights_only=True, map_location="cpu")
    )
    if average is not None:
        saved = load_file(os.path.join(folder, "ema.safetensors"))
        for name, tensor in average.state.items():
            tensor.copy_(saved[name])
        average.seen = state["average_seen"]
    return state


def anchors_in(path: str) -> PartialAnchorShapes:
    """`RetinaNet.anchor_shapes` of the network whose weights a safetensors file holds; empty where
    the file does not name them.
    """
    with safe_open(path, framework="pt") as file:
        stored = json_text.parse((file.metadata() or {}).get(_ANCHORS, "{}"))
    shapes = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    return cast(PartialAnchorShapes, shapes)


def load_weights(model: nn.Module, path: str) -> None:
    """Load a safetensors file that must fit the model exactly; `ValueError` lists the first names
    and shapes that differ.
    """
    weights = load_file(path)
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in weights] + [
        f"{k} is unknown" for k in weights if k not in own
    ]
    wrong += [
        f"{k} is {tuple(weights[k].shape)} where the model has {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if wrong:
        raise ValueError(
            f"{path}: the weights are of another network ({'; '.join(wrong[:3])}; {len(wrong)}"
            " differences); use the configuration they were trained with"
        )
    model.load_state_dict(weights)


def contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU in row-major order, which safetensors needs; channels-last weights are
    copied.
    """
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}
