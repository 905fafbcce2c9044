"""Files that others can write, with bytes changed at random: what they were, or one plain error.

FUZZ_EXAMPLES=1000000 looks for as long as it is let.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from cluster.errors import DataError, PlainError
from cluster.shards.consistency import fault_of_index
from cluster.shards.index import INDEX, Index, open_shard_set
from cluster.tracking.logged_package import artifact_folder
from cluster.tracking.registry import Version
from detector.checkpoint import anchors_in
from detector.tensor_file import read_tensors
from tests.support.shard_sets import row, write_set

VERSION = Version("cells", 1)
MLMODEL = b"""\
artifact_path: model
flavors:
  python_function:
    artifacts:
      package: {path: artifacts/package, uri: /runs/a}
    loader_module: mlflow.pyfunc.model
    python_version: 3.11.7
model_size_bytes: 4711
utc_time_created: '2026-01-02 03:04:05.678901'
"""
WEIGHTS = save(
    {"a": torch.arange(6.0).reshape(2, 3)}, metadata={"anchors": json.dumps({"sizes": [1, 2]})}
)


@pytest.fixture(scope="module")
def index() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_set(folder, [[row(n, 1) for n in range(5)], [row(5, 1)]])
        return (Path(folder) / INDEX).read_bytes()


def damaged(drawn: st.DataObject, data: bytes) -> bytes:
    """With a few bytes replaced, by any or by pieces that mean something in such a file."""
    changed = bytearray(data)
    pieces = st.binary(max_size=3) | st.sampled_from(
        [
            b"-",
            b"9" * 25,
            b"1e999",
            b"null",
            b"[",
            b"{}",
            b'"',
            b"../",
            b"*a",
            b"&a ",
            b": ",
            b"\xff",
        ]
    )
    for _ in range(drawn.draw(st.integers(1, 3))):
        place = drawn.draw(st.integers(0, len(changed)))
        changed[place : place + drawn.draw(st.integers(0, 4))] = drawn.draw(pieces)
    return bytes(changed)


@settings(deadline=None)
@given(drawn=st.data())
def test_an_index(drawn: st.DataObject, index: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / INDEX).write_bytes(damaged(drawn, index))
        try:
            opened = open_shard_set(folder)
        except PlainError as error:
            assert len(str(error)) < 1000 and str(error).isprintable()
        else:
            assert isinstance(opened.index, Index) and opened.num_rows is not None
            assert isinstance(fault_of_index(opened.index), str)


@settings(deadline=None)
@given(drawn=st.data())
def test_an_mlmodel(drawn: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "MLmodel").write_bytes(damaged(drawn, MLMODEL))
        try:
            found = artifact_folder(folder, "package", VERSION)
        except DataError as error:
            assert len(str(error)) < 1000 and str(error).isprintable()
        else:
            assert found is None or Path(found).is_relative_to(Path(folder).resolve())


@settings(deadline=None)
@given(drawn=st.data())
def test_a_safetensors_file(drawn: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.safetensors"
        Path(path).write_bytes(damaged(drawn, WEIGHTS))
        try:
            assert all(isinstance(one, torch.Tensor) for one in read_tensors(path).values())
        except ValueError as error:
            assert len(str(error)) < 1000
        else:
            try:
                assert isinstance(anchors_in(path), dict)
            except ValueError as error:
                assert len(str(error)) < 1000
