from __future__ import annotations

from pathlib import Path

import pytest

from cluster import run_folder, verdicts
from cluster.errors import UsageError
from detector import checkpoint


def publish(run: str, images_seen: int, *, keep: int = 2) -> str:
    def write(folder: str) -> None:
        Path(folder, "model.safetensors").write_bytes(b"weights")
        Path(folder, run_folder.STATE_FILE).write_text("{}")

    return run_folder.publish_checkpoint(run, images_seen, write, keep=keep, needed=verdicts.waiting)


def test_the_last_file_has_one_name_on_both_floors() -> None:
    assert run_folder.STATE_FILE == checkpoint.STATE_FILE


def test_a_checkpoint_without_its_last_file_does_not_count(tmp_path: Path) -> None:
    run = str(tmp_path)
    complete = publish(run, 100)
    torn = Path(run_folder.checkpoint_uri(run, 200))
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"weights")
    assert run_folder.checkpoints(run) == [complete]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    run = str(tmp_path)
    best = publish(run, 100)
    run_folder.write(run, run_folder.BEST, {"checkpoint": best})
    later = [publish(run, seen) for seen in (200, 300, 400)]
    assert run_folder.checkpoints(run) == [best, *later[1:]]


def test_what_waits_for_its_evaluation_is_kept(tmp_path: Path) -> None:
    run = str(tmp_path)
    first = publish(run, 100)
    verdicts.request(run, first, 100, 1)
    later = [publish(run, seen) for seen in (200, 300, 400)]
    assert run_folder.checkpoints(run) == [first, *later[1:]]
    # Its evaluation is over and it is not the best: the next one replaces it.
    verdicts.settle(run, {"checkpoint": first, "images_seen": 100, "epoch": 1, "error": "the machine is gone"})
    later.append(publish(run, 500))
    assert run_folder.checkpoints(run) == later[-2:]


def test_a_name_belongs_to_the_configuration_that_has_begun(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    run_folder.claim(run, {}, {"loss": {"gamma": 2.0}}, begun=False)
    # Nothing was trained yet: the name is free.
    run_folder.claim(run, {}, {"loss": {"gamma": 1.0}}, begun=False)
    run_folder.claim(run, {}, {"loss": {"gamma": 1.0}}, begun=True)
    with pytest.raises(UsageError, match=r"loss\.gamma was 1\.0, is 2\.0"):
        run_folder.claim(run, {}, {"loss": {"gamma": 2.0}}, begun=True)
