from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.runs.config import TrainConfig
from tune.config import SweepConfig
from tune.recorder import Recorder
from tune.trials import read_records

CONFIG = TrainConfig.model_validate({"name": "tiny", "data": {"train": "/t", "val": "/v"}})


def test_the_result_of_a_trial_that_is_stopped_early_is_recorded(tmp_path: Path) -> None:
    lines: list[str] = []
    config, budget = CONFIG, SweepConfig(epochs=4)
    uri = str(tmp_path / "sweeps/tiny")
    recorder = Recorder(config, budget, uri, None, "sweeps", lines.append)
    last = {"epoch": 2, "AP": 0.25, "AP50": 0.5, "images_seen": 48}
    trial = SimpleNamespace(
        trial_id="1", config={"gamma": 2.00004, "alpha": 0.25}, last_result=last
    )
    recorder.on_trial_result(1, [trial], trial, last)
    recorder.on_trial_complete(1, [trial], trial)
    (record,) = read_records(uri)
    assert (record.status, record.ap, record.epochs, record.sample) == (
        "stopped early",
        0.25,
        2,
        {"gamma": 2.0, "alpha": 0.25},
    )
    assert lines == [
        f"{record.trial} epoch 2 of 4: AP 0.2500  AP50 0.5000",
        f"{record.trial} stopped early after 2 epochs: AP 0.2500",
    ]
    trial.last_result = {**last, "epoch": 4}
    recorder.on_trial_complete(1, [trial], trial)
    assert read_records(uri)[0].status == "done"


@pytest.mark.parametrize("nothing", [-1.0, float("nan"), None])
def test_a_trial_without_a_score_shows_a_dash_and_has_no_result(
    tmp_path: Path, nothing: float | None
) -> None:
    lines: list[str] = []
    uri = str(tmp_path / "sweeps/tiny")
    recorder = Recorder(CONFIG, SweepConfig(epochs=2), uri, None, "sweeps", lines.append)
    last = {"epoch": 2, "AP": nothing, "AP50": nothing, "images_seen": 48}
    trial = SimpleNamespace(trial_id="1", config={"gamma": 2.0, "alpha": 0.25}, last_result=last)
    recorder.on_trial_result(1, [trial], trial, last)
    recorder.on_trial_complete(1, [trial], trial)
    (record,) = read_records(uri)
    assert (record.status, record.ap, record.ap50) == ("done", None, None)
    assert lines == [
        f"{record.trial} epoch 2 of 2: AP -  AP50 -",
        f"{record.trial} done after 2 epochs",
    ]
