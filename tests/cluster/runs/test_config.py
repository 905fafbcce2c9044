from __future__ import annotations

from typing import Any

import pytest

from cluster.runs.config import TrainConfig

DATA = {"data": {"train": "/t", "val": "/v"}}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"min_improvement": 0.01},
            "training.min_improvement 0.01: does nothing without training.patience",
        ),
        (
            {"evaluation": "between", "evaluation_workers": 2},
            "training.evaluation_workers 2: does nothing with training.evaluation between",
        ),
    ],
)
def test_settings_that_do_nothing_are_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**DATA, "training": training})


def test_an_evaluation_takes_a_gpu_where_workers_have_one() -> None:
    shares = [
        TrainConfig.model_validate({**DATA, "training": training}).evaluation_share[
            "gpus_per_worker"
        ]
        for training in (
            {},
            {"gpus_per_worker": 1},
            {"gpus_per_worker": 1, "evaluation_gpus": 0},
            {"evaluation_gpus": 0.5},
        )
    ]
    assert shares == [0, 1, 0, 0.5]
