"""Checkpoints whose files are not what was written give way to the one before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import DataError
from cluster.runs import run_folder
from tests.support.checkpoint_runs import CheckpointRun


def truncate(folder: Path) -> None:
    os.truncate(folder / "optimizer.pt", 100)


def lose(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def change_the_state(folder: Path) -> None:
    (folder / "state.json").write_text(
        (folder / "state.json").read_text().replace('"images_seen": 200', '"images_seen": 999')
    )


def cut_the_state(folder: Path) -> None:
    os.truncate(folder / "state.json", 40)


def lose_the_state(folder: Path) -> None:
    (folder / "state.json").unlink()


DAMAGES = [
    (truncate, "is damaged (optimizer.pt: has 100 bytes of "),
    (lose, "is damaged (model.safetensors: is missing)"),
    (flip_a_bit, "is damaged (model.safetensors: sha256 mismatch)"),
    (change_the_state, "is damaged (state.json: sha256 mismatch)"),
    (cut_the_state, "is damaged ("),
    (lose_the_state, "its upload is incomplete"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable, said: str
) -> None:
    run = CheckpointRun(str(tmp_path), tmp_path / "disk")
    for seen in (100, 200):
        uri = run.save(seen)
        run.settle()
    damage(Path(uri))
    again = CheckpointRun(str(tmp_path), tmp_path / "disk")
    assert again.newest(tmp_path) == 100
    (warning,) = again.warnings
    assert warning.startswith(f"{uri}: {said}") and warning.endswith(
        "; the checkpoint before it is used"
    )
    # Training comes to the same place again and replaces it.
    again.save(200)
    again.checkpoints.close()
    assert CheckpointRun(str(tmp_path), tmp_path / "disk").newest(tmp_path) == 200


def test_training_does_not_start_anew_if_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    run = CheckpointRun(str(tmp_path), tmp_path / "disk")
    assert run.newest(tmp_path) is None
    for seen in (100, 200):
        uri = run.save(seen)
        run.settle()
        flip_a_bit(Path(uri))
    with pytest.raises(DataError, match="none of its 2 checkpoints can be read"):
        CheckpointRun(str(tmp_path), tmp_path / "disk").newest(tmp_path)


def test_a_damaged_checkpoint_does_not_count_among_those_to_keep(tmp_path: Path) -> None:
    run = CheckpointRun(str(tmp_path), tmp_path / "disk")
    for seen in (200, 300):
        run.save(seen)
        run.settle()
    truncate(Path(run_folder.checkpoint_uri(run.uri, 300)))
    again = CheckpointRun(str(tmp_path), tmp_path / "disk")
    assert again.newest(tmp_path) == 200
    again.save(250)
    again.settle()
    # Two whole ones, and the damaged one for whoever wants to see it.
    assert again.stored == [200, 250, 300]
    again.save(300)
    again.settle()
    assert (
        again.stored == [250, 300]
        and CheckpointRun(str(tmp_path), tmp_path / "disk").newest(tmp_path) == 300
    )
