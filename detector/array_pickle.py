"""Arrays by name out of detectron2's .pkl, with no trust in the file.

A pickle is a program: it names functions, calls them, and sets the state of what they return. numpy
believes that state, also a pointer in it. So nothing of numpy's is called here. The names under
which numpy pickles its arrays stand for small classes of ours, and an array is made from a shape,
one of `NUMBERS` and bytes, after their sizes are compared.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

NUMBERS = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split())
"""Types of the numbers of an array, as numpy names them: kind and bytes."""
_MODULES = ("numpy.core", "numpy._core")
"""numpy 2 moved its private module; older files name the old one."""


def read_pickle(file: BinaryIO) -> Any:
    """The content of a pickle: dictionaries, lists, text, numbers and `StoredArray`s. A single
    number of numpy's becomes None.

    Raises `pickle.UnpicklingError` where the file names anything else. A damaged file may raise
    any exception.
    """
    return _Reader(file, encoding="latin1").load()


class _Type:
    """Stands for a `numpy.dtype`."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, *_: Any):
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class StoredArray:
    """An array of the file: its `numbers`, None where it holds anything else. Stands for a
    `numpy.ndarray`, whose content comes after it is made.
    """

    __slots__ = ("numbers",)

    def __init__(self, *_: Any):
        self.numbers: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, in_columns, content = state
        self.numbers = _numbers(shape, kind, bool(in_columns), content)


def _numbers(shape: Any, kind: _Type, in_columns: bool, content: Any) -> np.ndarray | None:
    """The array; None where it holds anything but numbers. `ValueError` for another number of bytes
    than those of its shape.
    """
    if kind.name not in NUMBERS:
        return None
    # Python 2 wrote bytes as text.
    data = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"an array has a {type(data).__name__} for bytes")
    dtype = np.dtype(f"{'>' if kind.order == '>' else '<'}{kind.name}")
    sides = tuple(int(side) for side in shape)
    if min(sides, default=0) < 0 or math.prod(sides) * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {sides} and type {dtype} has {len(data)} bytes")
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(sides, order="F" if in_columns else "C")


def _from_buffer(content: Any, kind: _Type, shape: Any, order: str) -> StoredArray:
    """How protocol 5 makes an array."""
    array = StoredArray()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _dictionary(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Keys are text, numbers or bytes: to hash a tuple of 100,000 tuples in each other overflows
    the stack of the process.
    """
    found = dict[Any, Any]()
    for key, value in pairs:
        if not isinstance(key, str | int | bytes):
            raise pickle.UnpicklingError(f"a key is a {type(key).__name__}, not text")
        found[key] = value
    return found


class _Call:
    """A function that a pickle may call. It has no attributes that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Any):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


_ADMITTED: dict[tuple[str, str], Any] = {
    **{(f"{core}.multiarray", "_reconstruct"): _Call(StoredArray) for core in _MODULES},
    **{(f"{core}.multiarray", "scalar"): _Call(lambda *_: None) for core in _MODULES},
    **{(f"{core}.numeric", "_frombuffer"): _Call(_from_buffer) for core in _MODULES},
    # An argument of `_reconstruct` alone.
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Call(_Type),
    ("collections", "OrderedDict"): _Call(lambda pairs=(): _dictionary(pairs)),
    # How protocol 2 writes bytes, and no bytes; the file does not choose the codec.
    ("__builtin__", "bytes"): _Call(lambda: b""),
    ("_codecs", "encode"): _Call(lambda text, codec: text.encode("latin1")),
}


# Any: its type stub has a part of its methods.
_PythonsReader: Any = pickle._Unpickler


class _Reader(_PythonsReader):
    """Python's own reader in place of that in C, which allocates a table of any size that a file of
    20 bytes asks for.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which is not an array"
            )
        return _ADMITTED[module_name, global_name]

    def _set_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_dictionary(zip(items[::2], items[1::2], strict=True)))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update(_dictionary([(key, value)]))

    def _begin_dictionary(self) -> None:
        items = self.pop_mark()
        self.append(_dictionary(zip(items[::2], items[1::2], strict=True)))

    # By the byte of each instruction. Sets hash what is in them.
    dispatch = {
        code: method
        for code, method in _PythonsReader.dispatch.items()
        if code not in (*pickle.ADDITEMS, *pickle.FROZENSET, *pickle.EMPTY_SET)
    } | {
        pickle.SETITEMS[0]: _set_items,
        pickle.SETITEM[0]: _set_item,
        pickle.DICT[0]: _begin_dictionary,
    }
