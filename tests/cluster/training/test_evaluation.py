"""The evaluation on the ranks, without a network and without pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.runs.evaluations import Request
from cluster.training import evaluation
from cluster.training.evaluation import RankEvaluator
from cluster.training.ranks import Ranks
from cluster.training.state import TrainingState
from detector.decode import Detections
from detector.metrics import Truth
from detector.model_config import DecodeConfig


def test_the_time_of_an_evaluation_is_that_of_detecting_all_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=5.0)

    def detects(*_: Any, **__: Any) -> dict[int, Detections]:
        clock.now += 0.5
        return {}

    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(evaluation, "for_detecting", lambda model, *_, **__: model)
    monkeypatch.setattr(evaluation, "Predictor", lambda *_, **__: None)
    monkeypatch.setattr(evaluation, "detect_share", detects)
    box = np.array([[0.0, 0.0, 9.0, 9.0]])
    truths = [
        Truth(number, 64, 64, box, np.zeros(1, np.int64), np.zeros(1, bool), np.array([81.0]))
        for number in range(20)
    ]
    evaluator = RankEvaluator(
        Ranks(0, 1, torch.device("cpu")),
        SimpleNamespace(),
        truths,
        ["cat"],
        frequencies={},
        canvases=[(64, 64)],
        long_side=None,
        decode=DecodeConfig(),
        amp=False,
        decode_threads=1,
        progressed=lambda: None,
    )
    model = torch.nn.Linear(1, 1)
    state = TrainingState(model, torch.optim.SGD(model.parameters()), None, images_per_epoch=8)
    made = evaluator(Request("/c", 8, 1), state)
    assert made is not None and made.seconds == 0.5
    # 500 ms for 20 images.
    assert made.ms_per_image == 25
