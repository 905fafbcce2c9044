"""What a sweep may vary, its budget, and how one sample becomes a training configuration. Nothing
heavy is imported: `--help` reads this file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field, model_validator

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from detector.config import Section

LIMITS = {"gamma": (0.0, 10.0), "alpha": (0.0, 1.0), "learning_rate": (0.0, 10.0)}
SECTIONS = {"gamma": "loss", "alpha": "loss", "learning_rate": "optimizer"}
"""In which section of the training configuration each name lies."""


class SpaceConfig(Section):
    """Ranges of what is searched, as LOW,HIGH."""

    gamma: tuple[float, float] = Field(
        (0.5, 5.0),
        description="focusing exponent of the focal loss, LOW,HIGH within 0..10; sampled evenly",
    )
    alpha: tuple[float, float] = Field(
        (0.1, 0.9), description="weight of the positive class, LOW,HIGH within 0..1; sampled evenly"
    )
    learning_rate: tuple[float, float] | None = Field(
        None,
        description=(
            "peak learning rate, LOW,HIGH within 0..10; sampled evenly in its logarithm; unset: not"
            " searched"
        ),
    )

    @model_validator(mode="after")
    def rising_within_limits(self) -> SpaceConfig:
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
    """How much is tried, and with what share of the machines."""

    trials: int = Field(
        8, ge=1, le=10_000, description="configurations tried; the first is the one that was given"
    )
    concurrent: int = Field(
        2,
        ge=1,
        le=1024,
        description="trials at the same time; fewer when the cluster cannot hold as many",
    )
    epochs: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="epochs of a trial that is not stopped early; unset: training.epochs",
    )
    grace_epochs: int = Field(
        1,
        ge=1,
        le=10_000,
        description=(
            "epochs before a trial may be stopped for being among the worse two thirds (ASHA)"
        ),
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the searcher")
    workers: int = Field(1, ge=1, le=4096, description="processes of one trial")
    cpus_per_worker: float = Field(
        0.5,
        gt=0,
        le=256,
        description="CPUs each worker books; reading needs 0.25 more a worker, a trial itself 0.01",
    )
    gpus_per_worker: int = Field(0, ge=0, le=1, description="GPUs each worker books: 0 or 1")
    space: SpaceConfig = SpaceConfig()


EXECUTION = {"concurrent", "workers", "cpus_per_worker", "gpus_per_worker"}
"""Fields of `SweepConfig` that change how a sweep is executed and not what it is."""


def apply(config: TrainConfig, sample: dict[str, float]) -> TrainConfig:
    """The configuration with the sampled values (`gamma`, `alpha`, `learning_rate`) in their
    sections, checked anew.
    """
    sections = config.model_dump()
    for name, value in sample.items():
        sections[SECTIONS[name]][name] = value
    return TrainConfig.model_validate(sections)


def given(config: TrainConfig, space: SpaceConfig) -> dict[str, float]:
    """The sample that stands for the configuration as it was given; a value outside its range moves
    to the nearest end.

    `UsageError` where the configuration has no focal loss, whose numbers are what is searched.
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


def rounded(sample: dict[str, float]) -> dict[str, float]:
    """Four significant digits: what is trained is what can be read and typed."""
    return {name: float(f"{value:.4g}") for name, value in sample.items()}


def trial_name(sample: dict[str, float]) -> str:
    """trial-<digest of the rounded sample>: a repeated sample continues its own run folder,
    whatever Tune calls it.
    """
    return (
        "trial-"
        + hashlib.sha256(json.dumps(rounded(sample), sort_keys=True).encode()).hexdigest()[:8]
    )


def recipe(config: TrainConfig) -> dict[str, Any]:
    """The configuration as `train --config` takes it; name, storage and data are left to the
    command line, as in pipelines/recipes.
    """
    return config.model_dump(mode="json", exclude={"name", "storage", "data"})
