"""A pickle of arrays gives its arrays, and calls, allocates and follows nothing."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.array_pickle import NUMBERS, StoredArray, read_pickle


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_come_back_as_they_were_written(protocol):
    rng = np.random.default_rng(3)
    written = {kind: rng.integers(0, 2, (2, 3)).astype(kind) for kind in sorted(NUMBERS)}
    written |= {
        "big endian": written["f4"].astype(">f4"),
        "columns": np.asfortranarray(written["f8"]),
        "no side": np.array(7.0),
        "empty": np.zeros((0, 4), np.float32),
    }
    found = read_pickle(io.BytesIO(pickle.dumps(written, protocol=protocol)))
    assert found.keys() == written.keys()
    for name, array in found.items():
        assert array.numbers.dtype == written[name].dtype.newbyteorder("="), name
        np.testing.assert_array_equal(array.numbers, written[name])


def test_what_is_no_number_is_left_out():
    content = {"text": np.array(["a"]), "objects": np.array([None]), "one": np.float32(2)}
    found = read_pickle(io.BytesIO(pickle.dumps(content)))
    assert found["text"].numbers is None and found["objects"].numbers is None
    assert found["one"] is None


def of_state(state: object) -> bytes:
    """A pickle of one array with this state, which only numpy's own code can make otherwise."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        + pickle.dumps(state, protocol=2)[2:-1]
        + b"b."
    )


KIND = b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R"
"""The instructions that make the type f8."""


@pytest.mark.parametrize(
    "attack",
    [
        # A dtype whose state says that its numbers are objects: numpy follows them as pointers.
        b"\x80\x02"
        + KIND
        + b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb.",
        # An array of 2^60 numbers in 8 bytes.
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01\x8a\x08"
        + struct.pack("<q", 1 << 60)
        + b"\x85"
        + KIND
        + b"\x89C\x0812345678tb.",
        # A table of 2^31 entries.
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        # The state of a function.
        b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
        # A tuple in a tuple, 200,000 times, as a key.
        b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
        b"\x80\x02}()" + b"\x85" * 200_000 + b"Nu.",
        b"\x80\x02()" + b"\x85" * 200_000 + b"N" + b"d.",
        b"\x80\x04\x8f()" + b"\x85" * 200_000 + b"\x90.",
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        of_state((1, (3,), "f8", False, b"")),
    ],
)
def test_a_hostile_pickle_harms_nothing(attack):
    # In a process of its own: what numpy's or Python's own reader does here ends the process.
    program = (
        "import sys, io, resource\n"
        "from detector.array_pickle import read_pickle\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try: print(type(read_pickle(io.BytesIO(sys.stdin.buffer.read()))).__name__)\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=attack, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() in {
        *("UnpicklingError", "ValueError", "AttributeError", "TypeError", "KeyError"),
        # The state of a type is ours to ignore, and a table has what is put into it.
        *("_Type", "NoneType"),
    }


def test_an_array_has_as_many_bytes_as_its_shape_says():
    array = StoredArray()
    kind = read_pickle(io.BytesIO(b"\x80\x02" + KIND + b"."))
    array.__setstate__((1, (1,), kind, False, b"12345678"))
    assert array.numbers is not None and array.numbers.shape == (1,)
    with pytest.raises(ValueError, match=r"shape \(2,\) and type float64 has 8 bytes"):
        array.__setstate__((1, (2,), kind, False, b"12345678"))
    with pytest.raises(ValueError, match="a int for bytes"):
        array.__setstate__((1, (0,), kind, False, 1 << 50))
    with pytest.raises(ValueError, match="shape"):
        array.__setstate__((1, (-1, -1), kind, False, b"12345678"))


WRITTEN = [
    pickle.dumps({"model": {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(1)}}, protocol=kind)
    for kind in (0, 2, 4, 5)
]


@settings(deadline=None)
@given(st.sampled_from(WRITTEN), st.data())
def test_changed_bytes_give_a_content_or_an_error(data, drawn):
    changed = bytearray(data)
    for _ in range(drawn.draw(st.integers(1, 4))):
        changed[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    try:
        found = read_pickle(io.BytesIO(bytes(changed[: drawn.draw(st.integers(0, len(data)))])))
    except Exception as error:
        assert not isinstance(error, RecursionError)
    else:
        assert not isinstance(found, np.ndarray | np.dtype)
