from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.runs import run_folder
from detector import checkpoint


def test_the_last_file_has_one_name_on_both_floors() -> None:
    assert run_folder.STATE_FILE == checkpoint.STATE_FILE


def test_a_checkpoint_without_its_last_file_does_not_count(tmp_path: Path) -> None:
    run = str(tmp_path)
    complete, torn = (Path(run_folder.checkpoint_uri(run, seen)) for seen in (100, 200))
    for folder in (complete, torn):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
    (complete / run_folder.STATE_FILE).write_text("{}")
    assert run_folder.checkpoints(run) == [str(complete)]
    assert run_folder.checkpoint_folders(run) == {str(complete): True, str(torn): False}


def test_a_name_belongs_to_the_configuration_that_has_begun(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    first = run_folder.claim(run, {}, {"loss": {"gamma": 2.0}}, begun=False)
    # Nothing was trained yet: the name is free, and what has it then is another run.
    second = run_folder.claim(run, {}, {"loss": {"gamma": 1.0}}, begun=False)
    assert first != second
    assert run_folder.claim(run, {}, {"loss": {"gamma": 1.0}}, begun=False) == second
    assert run_folder.claim(run, {}, {"loss": {"gamma": 1.0}}, begun=True) == second
    with pytest.raises(UsageError, match=r"loss\.gamma was 1\.0, is 2\.0"):
        run_folder.claim(run, {}, {"loss": {"gamma": 2.0}}, begun=True)
