from __future__ import annotations

from typing import Any

import pytest

from cluster.runs.config import TrainConfig, TrainOptions
from cluster.runs.identity import _hyper_parameters

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


@pytest.mark.parametrize("canvas", [{}, {"shapes": [[320, 448], [448, 320]]}, {"height": 320}])
def test_a_canvas_is_known_as_version_0_1_knew_it(canvas: dict[str, Any]) -> None:
    """So that its runs continue, and stages that it has finished are found."""
    config = TrainOptions.model_validate({**DATA, "canvas": canvas})
    whole = {"height": 800, "width": 1344, "shapes": [], "long_side": None} | canvas
    # What version 0.1 stored is still read, and is the same canvas.
    stored = TrainOptions.model_validate({**DATA, "canvas": whole})
    assert stored.canvas.canvases == config.canvas.canvases
    assert _hyper_parameters(config)["canvas"] == _hyper_parameters(stored)["canvas"] == whole
