from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import DataError, UsageError
from cluster.runs import evaluations, run_folder
from cluster.runs.run_folder import Claim, Finished, TrackingRecord
from detector import checkpoint


def test_the_last_file_of_a_checkpoint_has_one_name_in_the_project() -> None:
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


@pytest.mark.parametrize(
    "foreign", [".DS_Store", "images-backup/state.json", "@eaDir/a.txt", "images-000000000300/a/b"]
)
def test_what_is_no_checkpoint_does_not_count(tmp_path: Path, foreign: str) -> None:
    """Old checkpoints are deleted by these names: a foreign file once took all others with it."""
    checkpoint = Path(run_folder.checkpoint_uri(str(tmp_path), 100))
    checkpoint.mkdir(parents=True)
    (checkpoint / run_folder.STATE_FILE).write_text("{}")
    file = checkpoint.parent / foreign
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    assert run_folder.checkpoint_folders(str(tmp_path)) == {str(checkpoint): True}


def test_only_requests_for_checkpoints_wait(tmp_path: Path) -> None:
    (tmp_path / "waiting").mkdir()
    for name in ("._images-000000000100.json", "notes.json", "images-000000000100.json"):
        (tmp_path / "waiting" / name).write_text("{}")
    assert evaluations.waiting(str(tmp_path)) == [run_folder.checkpoint_uri(str(tmp_path), 100)]


def test_a_begun_run_owns_its_name(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    first = run_folder.claim(run, {}, {"loss": {"gamma": 2.0}}, begun=False)
    # Nothing was trained yet: the name is free, and what has it then is another run.
    second = run_folder.claim(run, {}, {"loss": {"gamma": 1.0}}, begun=False)
    assert first != second
    assert run_folder.claim(run, {}, {"loss": {"gamma": 1.0}}, begun=False) == second
    assert run_folder.claim(run, {}, {"loss": {"gamma": 1.0}}, begun=True) == second
    with pytest.raises(UsageError, match=r"loss\.gamma was 1\.0, is 2\.0"):
        run_folder.claim(run, {}, {"loss": {"gamma": 2.0}}, begun=True)


def test_a_run_of_an_older_version_has_the_defaults_of_new_settings(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    run_uuid = run_folder.claim(run, {}, {"loss": {"gamma": 2.0}}, begun=False)
    defaults = {"loss": {"gamma": 1.5, "slope": 0.5}}
    same, other = {"gamma": 2.0, "slope": 0.5}, {"gamma": 2.0, "slope": 0.75}
    assert run_folder.claim(run, {}, {"loss": same}, begun=True, defaults=defaults) == run_uuid
    with pytest.raises(UsageError, match=r"loss\.slope was 0\.5, is 0\.75"):
        run_folder.claim(run, {}, {"loss": other}, begun=True, defaults=defaults)


CONFIG_VERSION_1 = """{"identity": {"loss": {"gamma": 2.0}}, "config": {"name": "cells"},
  "born": "0123456789abcdef0123456789abcdef"}"""
TRACKING_VERSION_1 = """{"uri": "http://mlflow:5000", "experiment": "retinaray", "run_id": "f00d",
  "complete": true}"""
FINISHED_VERSION_1 = """{"images_seen": 48, "epochs": 2, "stopped": "AP has not risen"}"""


def test_records_of_version_1_are_read(tmp_path: Path) -> None:
    run = str(tmp_path)
    (tmp_path / "config.json").write_text(CONFIG_VERSION_1)
    (tmp_path / "tracking.json").write_text(TRACKING_VERSION_1)
    (tmp_path / "finished.json").write_text(FINISHED_VERSION_1)
    run_uuid = "0123456789abcdef0123456789abcdef"
    identity = {"loss": {"gamma": 2.0}}
    assert run_folder.read_claim(run) == Claim(identity, {"name": "cells"}, run_uuid)
    # The run that the version before has begun is continued as the same run.
    assert run_folder.claim(run, {"name": "cells"}, identity, begun=True) == run_uuid
    assert run_folder.claim(run, {"name": "cells"}, identity, begun=False) == run_uuid
    assert run_folder.read_tracking(run) == TrackingRecord(
        "http://mlflow:5000", "retinaray", "f00d", complete=True
    )
    assert run_folder.read_finished(run) == Finished(48, 2, stopped="AP has not risen")


def test_json_restores_a_record(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert run_folder.read_claim(run) is None
    assert run_folder.read_tracking(run) is None
    assert run_folder.read_finished(run) is None
    tracking, finished = TrackingRecord("sqlite:////m.db", "tests", "f00d"), Finished(48, 2)
    run_folder.write_tracking(run, tracking)
    run_folder.write_finished(run, finished)
    assert run_folder.read_tracking(run) == tracking
    assert run_folder.read_finished(run) == finished


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"version": 3}, "finished.json: version 3 is not known; use the version of the code"),
        ({"images_seen": 48}, r"finished.json: is damaged \('epochs' is missing\)"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, stored: dict[str, int], said: str) -> None:
    (tmp_path / "finished.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match=said):
        run_folder.read_finished(str(tmp_path))
