"""Tensors by name out of a weight file: .safetensors, torch's own format, or detectron2's .pkl."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from detector.array_pickle import StoredArray, read_pickle

State = dict[str, Tensor]


def read_tensors(path: str) -> State:
    """Every tensor of the file by its name. Only tensors and arrays are built, whatever the file
    contains. `ValueError` for a file that is missing, damaged, or holds something else.
    """
    if not os.path.isfile(path):
        raise ValueError(f"pretrained {path}: there is no such file; check the path")
    try:
        content = _content(path)
    except Exception as error:  # a damaged or foreign file may raise anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"pretrained {path}: cannot be read ({reason}); it must hold tensors alone, complete;"
            " download or save it again"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(
            f"pretrained {path}: holds a {type(content).__name__}; it must be a dictionary of names"
            " and tensors; save a state_dict()"
        )
    tensors = {name: _as_tensor(value) for name, value in content.items()}
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def _content(path: str) -> Any:
    if path.endswith(".safetensors"):
        return load_file(path)
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            return read_pickle(file)
    return torch.load(path, weights_only=True, map_location="cpu")


def _as_tensor(value: Any) -> Any:
    if isinstance(value, StoredArray):
        return None if value.numbers is None else torch.from_numpy(value.numbers)
    return value
