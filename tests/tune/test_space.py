"""A space and its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig, TrainOptions
from pipelines.command_line import parse
from pipelines.train import TrainVerb
from tune import space
from tune.build_space import space_of

CONFIG = TrainConfig.model_validate(
    {
        "name": "x",
        "data": {"train": "/t", "val": "/v"},
        "loss": {"gamma": 1.5, "alpha": 0.95},
        "optimizer": {"learning_rate": 0.02},
    }
)
BOXES = {
    "loss.box": "[smooth_l1, giou]",
    "loss.beta": "log 0.01..1 when loss.box=smooth_l1",
    "loss.box_weight": "1..3 when loss.box=giou",
}


def made(entries: dict[str, Any], config: TrainConfig = CONFIG) -> space.Space:
    return space_of("none", entries, config)


def test_a_sample_changes_its_own_fields_and_nothing_else() -> None:
    sample = {"loss.gamma": 3.0, "model.anchors.ratios": [1.0], "model.backbone": "resnet18"}
    changed = space.apply(CONFIG, sample)
    assert (changed.loss.gamma, changed.model.anchors.ratios) == (3.0, (1.0,))
    back = {"loss.gamma": 1.5, "model.anchors.ratios": [0.5, 1, 2], "model.backbone": "resnet50"}
    assert space.apply(changed, back) == CONFIG


def test_a_sample_of_the_version_before_is_read() -> None:
    old = {"gamma": 3.0, "alpha": 0.4, "learning_rate": 0.001}
    new = {"loss.gamma": 3.0, "loss.alpha": 0.4, "optimizer.learning_rate": 0.001}
    assert space.modern(old) == new == space.modern(new)
    assert space.apply(CONFIG, old) == space.apply(CONFIG, new)


def test_a_sample_is_checked_like_any_configuration() -> None:
    with pytest.raises(ValidationError, match="gamma"):
        space.apply(CONFIG, {"loss.gamma": 11.0})
    space_now = made({"loss.gamma": "0..5"})
    assert "loss.gamma 11: must be less" in (space_now.valid(CONFIG, {"loss.gamma": 11.0}) or "")
    # Each of them is valid, both together are not.
    both = {"augmentation.scale_min": 0.5, "augmentation.short_sides": [64, 96]}
    assert "beside augmentation.short_sides" in (space_now.valid(CONFIG, both) or "")
    assert space_now.valid(CONFIG, {"loss.gamma": 0.0}) is None


def test_the_given_configuration_is_moved_into_the_space() -> None:
    # gamma 1.5 lies in 0..5; alpha 0.95 is above 0.9; 0.02 lies nearer to 0.01 than to 0.1.
    searched = made(
        {
            "loss.gamma": "0..5",
            "loss.alpha": "0.1..0.9",
            "optimizer.learning_rate": [0.1, 0.01],
            "loss.box": ["giou", "l1"],
        }
    )
    assert searched.given(CONFIG) == {
        "loss.gamma": 1.5,
        "loss.alpha": 0.9,
        "optimizer.learning_rate": 0.01,
        "loss.box": "giou",
    }
    assert searched.outside(CONFIG) == ("loss.alpha", "optimizer.learning_rate", "loss.box")
    assert made({"loss.gamma+loss.alpha": [[1.5, 0.95], [0, 0.5]]}).outside(CONFIG) == ()


def test_fields_whose_conditions_do_not_hold_are_absent() -> None:
    searched = made(BOXES)
    assert searched.given(CONFIG) == {"loss.box": "smooth_l1", "loss.beta": pytest.approx(1 / 9)}
    active = [one.name for one in searched.active({"loss.box": "giou"}, CONFIG)]
    assert active == ["loss.box", "loss.box_weight"]
    assert [one.name for one in searched.active({}, CONFIG)] == ["loss.box", "loss.beta"]


def test_a_sample_of_a_smaller_space_still_fits() -> None:
    smaller, larger = made({"loss.gamma": "0..2"}), made({"loss.gamma": "0..5", **BOXES})
    sample = {"loss.gamma": 1.0}
    assert smaller.fits(sample) and larger.fits(sample)
    assert larger.completed(sample) == {
        "loss.gamma": 1.0,
        "loss.box": "smooth_l1",
        "loss.beta": pytest.approx(1 / 9),
    }
    assert larger.fits({"loss.gamma": 4.0}) and not smaller.fits({"loss.gamma": 4.0})
    assert larger.fits({"loss.box": "giou", "loss.box_weight": 2.0})
    assert not larger.fits({"loss.box": "giou", "loss.box_weight": 4.0})
    assert not larger.fits({"loss.box": "l1"})
    # The configured alpha, 0.95, is outside; a sample without alpha was trained with it.
    assert not made({"loss.gamma": "0..2", "loss.alpha": "0.1..0.9"}).fits(sample)
    # A field that is not searched here must have its configured value.
    assert smaller.fits({**sample, "loss.alpha": 0.95})
    assert not smaller.fits({**sample, "loss.alpha": 0.5})
    assert not smaller.fits({**sample, "loss.no_longer_there": 1})


def test_rounding_keeps_a_sample_in_the_space() -> None:
    searched = made({"loss.beta": "0.012346..0.98765", "loss.alpha": [1 / 3, 0.5]})
    for beta in (0.01235, 0.98765, 0.123456):
        sample = {"loss.beta": beta, "loss.alpha": 1 / 3}
        assert searched.fits(space.rounded(sample))


def test_a_grid_holds_every_combination_once() -> None:
    # smooth_l1 with 3 betas, giou with 3 weights; twice, for two widths.
    grid = made({**BOXES, "model.width": [64, 128]}).grid(3)
    assert len(grid) == 2 * (3 + 3)
    assert len({space.trial_name(sample, 3) for sample in grid}) == 12
    assert all(("loss.beta" in one) == (one["loss.box"] == "smooth_l1") for one in grid)
    assert {one["loss.box_weight"] for one in grid if one["loss.box"] == "giou"} == {1.0, 2.0, 3.0}
    assert made({**BOXES, "loss.gamma": "0..5"}).size is None
    assert made({"model.width": [64, 128], "loss.box": ["giou", "iou"]}).size == 4
    # Two whole numbers are two, whatever number of points is asked for.
    assert len(made({"training.batch_size": {"values": [4, 8]}}).grid(9)) == 2
    assert len(made({"model.frozen_stages": "0..1"}, PRETRAINED).grid(9)) == 2


PRETRAINED = CONFIG.model_copy(update={"pretrained": "/w"})


def test_a_grid_that_is_too_large_says_its_size() -> None:
    searched = made({"loss.gamma": "0..5", "loss.alpha": "0.1..0.9"})
    assert len(searched.grid(100)) == 10_000
    with pytest.raises(UsageError, match="up to 10201 combinations, the most is 10000"):
        searched.grid(101)


def test_names_follow_the_rounded_sample() -> None:
    sample = {"loss.gamma": 2.34567, "loss.box": "giou", "training.batch_size": 123456}
    assert space.rounded(sample) == {**sample, "loss.gamma": 2.346}
    name = space.trial_name({"loss.gamma": 2.34567, "loss.alpha": 0.25}, 3)
    assert name == space.trial_name({"loss.alpha": 0.25, "loss.gamma": 2.346}, 3)
    assert name != space.trial_name({"loss.alpha": 0.25, "loss.gamma": 2.347}, 3)
    # A trial of another length has another name.
    assert name != space.trial_name({"loss.alpha": 0.25, "loss.gamma": 2.346}, 4)
    assert len(name) == len("trial-") + 8


def test_a_line_shows_the_values_as_one_types_them() -> None:
    sample = {"loss.gamma": 2.0, "model.anchors.ratios": [0.5, 1.0], "loss.box": "giou"}
    assert space.shown(sample) == "loss.gamma 2, model.anchors.ratios 0.5,1, loss.box giou"


def test_the_recipe_is_what_train_takes(tmp_path: Path) -> None:
    sample = {"loss.gamma": 3.0, "model.anchors.ratios": [1.0], "loss.box": "giou"}
    changed = space.apply(CONFIG, sample)
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(space.recipe(changed)))
    parsed = parse(
        TrainVerb, ["--config", str(path), "--data.train", "/t", "--data.val", "/v", "--name", "x"]
    )
    read = TrainOptions.model_validate(parsed.model_dump(include=set(TrainOptions.model_fields)))
    assert read.training.workers == "auto"
    share = CONFIG.training
    assert (
        read.settled(
            workers=share.workers,
            gpus_per_worker=share.gpus_per_worker,
            decode_threads=share.decode_threads,
        )
        == changed
    )
