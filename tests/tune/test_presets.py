"""The paper's ablations as data."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cluster.runs.config import TrainConfig
from detector.model_config import AnchorConfig
from tune import presets, space
from tune.build_space import space_of

CONFIG = TrainConfig.model_validate({"data": {"train": "/t", "val": "/v"}})


def test_every_arm_can_be_trained_and_lies_in_the_space_of_the_paper() -> None:
    searched = space_of("paper", {}, CONFIG)
    arms = presets.paper_arms()
    assert len({(arm.table, arm.label) for arm in arms}) == len(arms) == 1 + 7 + 7 + 7
    for arm in arms:
        assert searched.valid(CONFIG, arm.sample) is None, arm
        assert searched.fits(arm.sample), arm


def test_the_papers_own_model_is_the_default_and_stands_in_two_tables() -> None:
    own = {
        arm.table: arm for arm in presets.paper_arms() if space.apply(CONFIG, arm.sample) == CONFIG
    }
    assert own.keys() == {"1b", "1c"}
    assert own["1b"].paper_ap == own["1c"].paper_ap == 34.0
    # Table 1b, gamma 0, is the best row of Table 1a.
    best = max(arm.paper_ap or 0 for arm in presets.paper_arms() if arm.table == "1a")
    assert best == next(arm.paper_ap for arm in presets.paper_arms() if arm.table == "1b")


def test_scales_are_spread_evenly_over_an_octave() -> None:
    assert presets.octave(3) == pytest.approx(AnchorConfig().scales)
    for count in (1, 2, 4):
        scales = [*presets.octave(count), 2.0]
        ratios = [high / low for low, high in pairwise(scales)]
        assert ratios == pytest.approx([2 ** (1 / count)] * count)


def test_presets_lie_around_the_configuration() -> None:
    given = TrainConfig.model_validate(
        {
            "data": {"train": "/t", "val": "/v"},
            "model": {"anchors": {"base_sizes": [16, 32, 64, 128, 256], "scales": [1, 1.3]}},
            "optimizer": {"learning_rate": 0.0007, "weight_decay": 0.5, "clip_norm": 3.0},
        }
    )
    anchors, optimiser = space_of("anchors", {}, given), space_of("optimiser", {}, given)
    assert anchors.outside(given) == optimiser.outside(given) == ()
    entries = {one.name: str(one) for one in optimiser.dimensions}
    # A tenth to ten times; weight decay is at most 1.
    assert entries["optimizer.learning_rate"] == "log 7e-05..0.007"
    assert entries["optimizer.weight_decay"] == "log 0.05..1"
    assert entries["optimizer.clip_norm"] == "[3, 1, 5, 10, 35]"
