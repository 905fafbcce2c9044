from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import PlainError, UsageError
from cluster.runs.config import TrainConfig
from detector.step import NonFiniteLoss
from tune import trainable
from tune.config import SweepConfig
from tune.trainable import Told, run_trial

DATA = {"train": "/t", "val": "/v"}


class Tune:
    """What a trial says to Tune and to the driver, with a training that fails as told."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Any, *failures: Exception, **changes: Any
    ):
        self.reported: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.parts: list[int] = []
        pending = list(failures)

        def train(told: Told, config: TrainConfig) -> None:
            self.parts.append(config.training.accumulate)
            if pending:
                raise pending.pop(0)

        monkeypatch.setattr(trainable, "_train_once", train)
        monkeypatch.setattr("ray.tune.report", self.reported.append)
        put = SimpleNamespace(remote=lambda one: self.told.append(one.event.text))
        training = {"batch_size": 6, "workers": 1, **changes.pop("training", {})}
        config = {"name": "x", "data": DATA, "training": training}
        nothing: Any = None
        self.given = Told(
            config=TrainConfig.model_validate(config),
            sweep=SweepConfig(**changes),
            uri=str(folder),
            train_set=nothing,
            val_set=nothing,
            weights=None,
            mailbox=SimpleNamespace(put=put),
            board=None,
            local_size=1,
        )

    def run(self) -> None:
        run_trial(self.given, json.dumps({"loss.gamma": 1.0}))


NO_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_trial_without_room_is_tried_again_in_more_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    tune = Tune(monkeypatch, tmp_path, NO_MEMORY)
    tune.run()
    # 6 images in 2 parts; the next even split after one part.
    assert tune.parts == [1, 2] and tune.reported == []
    assert tune.told == ["the batch did not fit into memory; its images now run in 2 parts"]
    three = Tune(monkeypatch, tmp_path, NO_MEMORY, training={"accumulate": 2})
    three.run()
    assert three.parts == [2, 6]


def test_a_trial_that_still_has_no_room_is_told_to_the_searcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    tune = Tune(monkeypatch, tmp_path, NO_MEMORY, NO_MEMORY)
    tune.run()
    (failed,) = tune.reported
    assert failed["diverged"] and "out of memory" in failed["failed"]
    # One image a worker cannot be split.
    single = Tune(monkeypatch, tmp_path, NO_MEMORY, training={"batch_size": 1})
    single.run()
    assert single.parts == [1] and single.reported[0]["diverged"]


@pytest.mark.parametrize(
    ("error", "exit_code", "diverged"),
    [
        (NonFiniteLoss("the loss of images [3] is not finite"), 1, True),
        (UsageError("the name is taken"), 2, False),
    ],
)
def test_what_a_restart_cannot_mend_is_reported_and_the_process_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    error: Exception,
    exit_code: int,
    diverged: bool,
) -> None:
    tune = Tune(monkeypatch, tmp_path, error)
    tune.run()
    (failed,) = tune.reported
    assert (failed["exit_code"], failed["diverged"]) == (exit_code, diverged)
    assert str(error) in failed["failed"]


def test_what_a_restart_may_mend_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    tune = Tune(monkeypatch, tmp_path, PlainError("storage did not answer"))
    with pytest.raises(PlainError, match="storage did not answer"):
        tune.run()
    assert tune.reported == []
    # A group of workers was restarted by Ray Train, as often as allowed.
    group = Tune(monkeypatch, tmp_path, PlainError("rank 1 is gone"), workers=2)
    group.run()
    assert group.reported[0]["failed"] == "rank 1 is gone"
