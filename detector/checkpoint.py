"""A checkpoint is a directory: model.safetensors, ema.safetensors, optimizer.pt, state.json.
Nothing in it is pickled code.

state.json is written last. Its `files` hold the bytes and the sha256 of all others, its `sha256` is
that of the rest of itself, so a checkpoint that was cut short or changed is known from one that is
whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detector.optimizer import MovingAverage

STATE_FILE = "state.json"
"""Written last: a directory without it is not a checkpoint."""
ANCHORS = "anchors"


class Snapshot(NamedTuple):
    """A copy, in this machine's memory, of all that a checkpoint holds: training may go on while it
    is written.
    """

    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    metadata: dict[str, str] | None
    """Of the weight files: as JSON under `ANCHORS`, which anchors a RetinaNet was trained with. Its
    tensors do not show it.
    """
    state: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the tensors, which are nearly all of the files."""
        return sum(
            tensor.nbytes for tensor in tensors_of([self.model, self.average, self.optimizer])
        )


def take_snapshot(
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    state: dict[str, Any],
    before: Snapshot | None = None,
) -> Snapshot:
    """Copy everything needed to go on. `state` is plain JSON: counters, data position, config,
    digests; `average_seen` is added.

    `before` is a snapshot of the same training that is no longer needed; its memory is used again:
    0.05 s instead of 0.3 s for a ResNet-50 with AdamW and an average (608 MB), most of which is the
    kernel's time for new pages.
    """
    model_copy, average_copy, optimizer_copy = copied(
        [model.state_dict(), average.state if average else None, optimizer.state_dict()],
        [before.model, before.average, before.optimizer] if before else None,
    )
    anchors = (
        {ANCHORS: json.dumps(model.anchor_shapes)} if hasattr(model, "anchor_shapes") else None
    )
    return Snapshot(
        model_copy,
        average_copy,
        optimizer_copy,
        anchors,
        {**state, "average_seen": average.seen if average else 0.0},
    )


def copied(value: Any, before: Any) -> Any:
    """`value` with its tensors copied to the CPU, into those of `before` that have the same place,
    shape and dtype.
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
            k: copied(v, before.get(k) if isinstance(before, Mapping) else None)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [
            copied(v, before[i] if isinstance(before, list) and i < len(before) else None)
            for i, v in enumerate(value)
        ]
    return value


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    )
    return [tensor for part in parts for tensor in tensors_of(part)]


def write_checkpoint(folder: str, snapshot: Snapshot) -> None:
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


def save_checkpoint(
    folder: str,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    state: dict[str, Any],
) -> None:
    """`take_snapshot` and `write_checkpoint` in one."""
    write_checkpoint(
        folder, take_snapshot(model=model, optimizer=optimizer, average=average, state=state)
    )


def seal(folder: str, state: dict[str, Any]) -> None:
    """Write state.json beside the files that are in the folder, with their digests and its own."""
    files = {
        name: file_digest(os.path.join(folder, name))
        for name in sorted(os.listdir(folder))
        if name != STATE_FILE
    }
    # As it will be read: JSON has no tuples, and no keys but text.
    sealed = json.loads(json.dumps({**state, "files": files}, allow_nan=False))
    with open(os.path.join(folder, STATE_FILE), "w", encoding="utf-8") as file:
        json.dump({**sealed, "sha256": state_digest(sealed)}, file, indent=1)


def file_digest(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "bytes": os.path.getsize(path),
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def state_digest(state: Mapping[str, Any]) -> str:
    """sha256 of the state without its own `sha256`: it names a checkpoint, wherever that lies."""
    content = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_state(data: bytes) -> dict[str, Any]:
    """The content of a state.json. `ValueError` where it is not what was written, `KeyError` where
    it has no digests to tell it by.
    """
    state = json.loads(data)
    if not isinstance(state, dict) or state["sha256"] != state_digest(state):
        raise ValueError(f"{STATE_FILE}: its sha256 is another")
    return state


def verify_checkpoint(folder: str) -> dict[str, Any]:
    """The state of a checkpoint of which every file is what was written. `ValueError` names the
    first that is not; `KeyError` as in `parse_state`.
    """
    try:
        with open(os.path.join(folder, STATE_FILE), "rb") as file:
            state = parse_state(file.read())
        for name, written in state["files"].items():
            found = file_digest(os.path.join(folder, name))
            if found != written:
                length = (
                    f"has {found['bytes']} bytes of {written['bytes']}"
                    if found["bytes"] != written["bytes"]
                    else "its sha256 is another"
                )
                raise ValueError(f"{name}: {length}")
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
    """Put a checkpoint's weights, optimiser and average back in place and return its state.

    Raises `ValueError` where the weights belong to another network.
    """
    with open(os.path.join(folder, STATE_FILE), encoding="utf-8") as file:
        state = json.load(file)
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


def anchors_in(path: str) -> dict[str, Any]:
    """`RetinaNet.anchor_shapes` of the network that a safetensors file was saved of; empty where
    the file does not say.
    """
    with safe_open(path, framework="pt") as file:
        said = json.loads((file.metadata() or {}).get(ANCHORS, "{}"))
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in said.items()
    }


def load_weights(model: nn.Module, path: str) -> None:
    """Load a safetensors file that must fit the model exactly; `ValueError` names the first names
    and shapes that do not.
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
    """safetensors stores plain row-major tensors; channels-last weights are copied into that order."""
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}
