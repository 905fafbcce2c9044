from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from detector.model_config import ModelConfig
from detector.training_config import LossConfig
from pipelines.command_line import parse
from pipelines.train import TrainVerb
from tune import space
from tune.space import SpaceConfig

CONFIG = TrainConfig.model_validate(
    {
        "name": "x",
        "data": {"train": "/t", "val": "/v"},
        "loss": {"gamma": 1.5, "alpha": 0.95},
        "optimizer": {"learning_rate": 0.02},
    }
)


def test_a_sample_changes_its_own_fields_and_nothing_else() -> None:
    changed = space.apply(CONFIG, {"gamma": 3.0, "alpha": 0.4, "learning_rate": 0.001})
    assert (changed.loss.gamma, changed.loss.alpha, changed.optimizer.learning_rate) == (
        3.0,
        0.4,
        0.001,
    )
    back = space.apply(changed, {"gamma": 1.5, "alpha": 0.95, "learning_rate": 0.02})
    assert back == CONFIG


def test_a_sample_is_checked_like_any_configuration() -> None:
    with pytest.raises(ValidationError, match="gamma"):
        space.apply(CONFIG, {"gamma": 11.0})


def test_the_given_configuration_is_moved_into_the_ranges() -> None:
    # gamma 1.5 lies in 0.5..5; alpha 0.95 is above 0.9.
    assert space.given(CONFIG, SpaceConfig()) == {"gamma": 1.5, "alpha": 0.9}
    with_rate = SpaceConfig(gamma=(2.0, 3.0), learning_rate=(0.001, 0.01))
    assert space.given(CONFIG, with_rate) == {"gamma": 2.0, "alpha": 0.9, "learning_rate": 0.01}


def test_there_is_nothing_to_search_in_a_loss_without_these_numbers() -> None:
    plain = CONFIG.model_copy(update={"loss": LossConfig(classification="balanced_cross_entropy")})
    with pytest.raises(
        UsageError,
        match="loss.classification balanced_cross_entropy: .* set it to focal, or use train",
    ):
        space.given(plain, SpaceConfig())
    baseline = CONFIG.model_copy(update={"model": ModelConfig(architecture="fcos")})
    with pytest.raises(UsageError, match="model.architecture fcos: .* use train"):
        space.given(baseline, SpaceConfig())


@pytest.mark.parametrize(
    "ranges",
    [
        {"gamma": (3.0, 1.0)},
        {"gamma": (0.5, 12.0)},
        {"alpha": (0.0, 0.5)},
        {"learning_rate": (0.1, 0.1)},
    ],
)
def test_ranges_must_rise_within_their_limits(ranges: dict[str, tuple[float, float]]) -> None:
    (name,) = ranges
    with pytest.raises(ValidationError, match=f"sweep.space.{name} .*LOW < HIGH"):
        SpaceConfig(**ranges)


def test_names_follow_the_rounded_sample() -> None:
    assert space.rounded({"gamma": 2.34567, "alpha": 0.0123456}) == {
        "gamma": 2.346,
        "alpha": 0.01235,
    }
    name = space.trial_name({"gamma": 2.34567, "alpha": 0.25})
    assert (
        name
        == space.trial_name({"alpha": 0.25, "gamma": 2.346})
        != space.trial_name({"alpha": 0.25, "gamma": 2.347})
    )
    assert len(name) == len("trial-") + 8


def test_the_recipe_is_what_train_takes(tmp_path: Path) -> None:
    changed = space.apply(CONFIG, {"gamma": 3.0, "learning_rate": 0.001})
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(space.recipe(changed)))
    parsed = parse(
        TrainVerb, ["--config", str(path), "--data.train", "/t", "--data.val", "/v", "--name", "x"]
    )
    assert (
        TrainConfig.model_validate(parsed.model_dump(include=set(TrainConfig.model_fields)))
        == changed
    )
