"""Tensors by name out of a weight file: .safetensors, torch's own format, or detectron2's .pkl."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

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
            return _ArraysOnly(file, encoding="latin1").load()
    return torch.load(path, weights_only=True, map_location="cpu")


def _as_tensor(value: Any) -> Any:
    is_array = isinstance(value, np.ndarray) and value.dtype != object
    return torch.from_numpy(value) if is_array else value


_RECONSTRUCT, _SCALAR = np.empty(1).__reduce__()[0], np.float32(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    # numpy 2 moved its private module; older files name the old one.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    # How protocol 2 writes bytes; the file does not choose the codec.
    ("_codecs", "encode"): lambda text, codec: text.encode("latin1"),
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles containers, numbers, text and numpy arrays. A pickle may call any function by name;
    all but `_ADMITTED` are refused.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which is not an array"
            )
        return _ADMITTED[module_name, global_name]
