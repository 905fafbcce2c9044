"""What a sweep may vary, its budget, and how a sample becomes a training configuration. Nothing
heavy is imported here: `--help` reads this file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from cluster.compute.resources import READ_CPUS
from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from detector.config import Section

TRIAL_CPUS = 0.01
"""CPUs that the process around a trial books. Its workers book their own; with Tune's default of 1
they would wait for each other for ever.
"""
LIMITS = {"gamma": (0.0, 10.0), "alpha": (0.0, 1.0), "learning_rate": (0.0, 10.0)}
SECTIONS = {"gamma": "loss", "alpha": "loss", "learning_rate": "optimizer"}
"""The section of the training configuration that has each name."""

Sample = Mapping[str, float]
"""Values of the names that are searched, such as {"gamma": 2.0, "alpha": 0.25}."""


class SpaceConfig(Section):
    """Range of each value that is searched, LOW,HIGH."""

    gamma: tuple[float, float] = Field(
        default=(0.5, 5.0),
        description="focusing exponent of the focal loss, LOW,HIGH within 0..10; sampled uniformly",
    )
    alpha: tuple[float, float] = Field(
        default=(0.1, 0.9),
        description="weight of the positive class, LOW,HIGH within 0..1; sampled uniformly",
    )
    learning_rate: tuple[float, float] | None = Field(
        default=None,
        description=(
            "peak learning rate, LOW,HIGH within 0..10; its logarithm is sampled uniformly; unset:"
            " not searched"
        ),
    )

    @model_validator(mode="after")
    def _rising_within_limits(self) -> SpaceConfig:
        for name, (low, high) in self.ranges().items():
            least, most = LIMITS[name]
            if not least < low < high < most:
                raise ValueError(
                    f"sweep.space.{name} {low:g},{high:g}: must be LOW,HIGH with {least:g} < LOW <"
                    f" HIGH < {most:g}"
                )
        return self

    def ranges(self) -> dict[str, tuple[float, float]]:
        return {name: span for name in LIMITS if (span := getattr(self, name)) is not None}


class SweepConfig(Section):
    """How many trials, how long, and with what share of the machines."""

    trials: int = Field(
        default=8, ge=1, le=10_000, description="configurations to try; the first is the given one"
    )
    concurrent: int = Field(
        default=2,
        ge=1,
        le=1024,
        description="trials at the same time; fewer where the cluster is too small for so many",
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="epochs of a trial that is not stopped early; unset: training.epochs",
    )
    grace_epochs: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description=(
            "epochs before a trial may be stopped because it is among the worse two thirds (ASHA)"
        ),
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the searcher")
    workers: int = Field(default=1, ge=1, le=4096, description="processes of one trial")
    cpus_per_worker: float = Field(
        default=0.5,
        gt=0,
        le=256,
        description=(
            f"CPUs that each worker books; reading books {READ_CPUS} more for each, and each trial"
            f" {TRIAL_CPUS}"
        ),
    )
    gpus_per_worker: int = Field(
        default=0, ge=0, le=1, description="GPUs that each worker books: 0 or 1"
    )
    space: SpaceConfig = SpaceConfig()


EXECUTION = {"concurrent", "workers", "cpus_per_worker", "gpus_per_worker"}
"""Fields of `SweepConfig` that change how a sweep is executed and not its results."""


def apply(config: TrainConfig, sample: Sample) -> TrainConfig:
    """The configuration with the values of the sample in their sections, validated again."""
    sections = config.model_dump()
    for name, value in sample.items():
        sections[SECTIONS[name]][name] = value
    return TrainConfig.model_validate(sections)


def given(config: TrainConfig, space: SpaceConfig) -> Sample:
    """The sample that the given configuration is; a value outside its range moves to the nearest
    end of the range.

    `UsageError` where the configuration has no focal loss, whose values a sweep searches.
    """
    if config.model.architecture != "retinanet":
        raise UsageError(
            f"model.architecture {config.model.architecture}: a sweep varies the focal loss, which"
            " only retinanet has; use train"
        )
    if config.loss.classification != "focal":
        raise UsageError(
            f"loss.classification {config.loss.classification}: a sweep varies gamma and alpha of"
            " the focal loss; set it to focal, or use train"
        )
    return {
        name: min(max(getattr(getattr(config, SECTIONS[name]), name), low), high)
        for name, (low, high) in space.ranges().items()
    }


def rounded(sample: Sample) -> Sample:
    """Four significant digits, so that one can read and type the values that are trained."""
    return {name: float(f"{value:.4g}") for name, value in sample.items()}


def trial_name(sample: Sample) -> str:
    """trial-<digest of the rounded sample>: a repeated sample continues in its own run folder,
    whatever name Tune gives it.
    """
    return (
        "trial-"
        + hashlib.sha256(json.dumps(dict(rounded(sample)), sort_keys=True).encode()).hexdigest()[:8]
    )


def recipe(config: TrainConfig) -> dict[str, Any]:
    """The configuration as `train --config` takes it; name, storage and data come from the command
    line, as with pipelines/recipes.
    """
    return config.model_dump(mode="json", exclude={"name", "storage", "data"})
