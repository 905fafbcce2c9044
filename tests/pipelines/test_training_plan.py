"""`train --plan true` says what a training would do, and does nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.runs import run_folder
from cluster.runs.identity import identity
from cluster.shards.index import open_shard_set
from cluster.storage import files
from pipelines.train import TrainVerb, main
from tests.support.trainings import TINY, TRAINING, configured


def verb(sets: dict[str, str], storage: Path, **training: object) -> TrainVerb:
    sections = {"data": sets, "storage": str(storage), "name": "cells", "plan": True}
    return TrainVerb.model_validate({**TINY, **sections, "training": {**TRAINING, **training}})


def test_a_plan_reads_the_index_and_starts_nothing(
    small_sets: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cluster.compute import session

    monkeypatch.setattr(session, "connect", lambda *_, **__: pytest.fail("nothing is started"))
    main(verb(small_sets, tmp_path))
    said = capsys.readouterr().out
    assert f"read     {small_sets['train']}: 24 images in " in said
    # 2 workers x (0.5 + 0.25 for reading)
    assert "book     2 processes, 1.5 CPUs in all" in said
    assert "in all, and a GPU for each worker if the cluster has them\n" in said
    # 24 images / 4 = 6 steps an epoch
    assert "work     2 epochs of 24 images, 48 in all, about 12 steps of 4" in said
    assert "begin    a new run" in said
    main(verb(small_sets, tmp_path, workers="auto"))
    assert "book     as many workers as suit the cluster (training.workers auto)" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "runs").exists(), "the name is not taken"


def test_a_plan_says_that_a_run_is_finished_and_which_setting_would_be_refused(
    small_sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(small_sets, tmp_path, "cells")
    sets = [open_shard_set(small_sets[split]) for split in ("train", "val")]
    stored = identity(config, *sets, weights=None)
    run_folder.claim(config.run_uri, {}, stored, begun=False)
    run_folder.write_finished(config.run_uri, run_folder.Finished(48, 2))
    main(verb(small_sets, tmp_path))
    assert "begin    the run is finished after 2 epochs" in capsys.readouterr().out
    # A version that did not know a setting had its default.
    del stored["augmentation"]["mixup"]
    files.write_json(f"{config.run_uri}/config.json", run_folder.Claim(stored, {}, "1").to_json())
    main(verb(small_sets, tmp_path))
    assert "begin    the run is finished after 2 epochs" in capsys.readouterr().out
    main(verb(small_sets, tmp_path, epochs=3))
    said = capsys.readouterr().out
    assert "begin    would be refused: the run of this name is finished after 2 epochs" in said
    assert "         training.epochs: 2 -> 3" in said
