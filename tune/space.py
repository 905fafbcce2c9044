"""The search space of a sweep over the fields of the training configuration, and how a sample of it
becomes a training configuration. Nothing heavy is imported here: `--help` reads this file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from cluster.compute.resources import READ_CPUS
from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from detector.config import Section
from tune import fields
from tune.dimensions import Dimension, four_digits, same
from tune.presets import Preset

TRIAL_CPUS = 0.01
"""CPUs that the process around a trial books. Its workers book their own; with Tune's default of 1
they would wait for each other for ever.
"""
MOST_OF_A_GRID = 10_000
OLD_NAMES = {
    "gamma": "loss.gamma",
    "alpha": "loss.alpha",
    "learning_rate": "optimizer.learning_rate",
}
"""What the version before this one could search, with the names of today."""

Sample = Mapping[str, Any]
"""JSON value by field, such as {"loss.gamma": 2.0, "loss.box": "giou"}. Fields whose conditions do
not hold are absent.
"""


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
    preset: Preset = Field(
        default="focal",
        description=(
            "what is searched, beside the entries of sweep.space: focal (gamma and alpha), anchors"
            " (base sizes, scales, ratios), focal+anchors, optimiser (learning rate, weight decay,"
            " warm-up, clipping), augmentation, paper (the losses and anchors of its Table 1) or"
            " none"
        ),
    )
    space: dict[str, Any] = Field(
        default={},
        description=(
            "what is searched, by setting: LOW..HIGH, log LOW..HIGH, int LOW..HIGH or a list, such"
            " as loss.gamma 0..5; `a+b` and a list of lists for fixed pairs; `when FIELD=VALUE`"
            " after it for a condition. An entry replaces that of the preset; none removes it"
        ),
    )


EXECUTION = {"concurrent", "workers", "cpus_per_worker", "gpus_per_worker"}
"""Fields of `SweepConfig` that change how a sweep is executed and not its results."""


@dataclass(frozen=True)
class Space:
    """What is searched: the product of its dimensions."""

    dimensions: tuple[Dimension, ...]
    """Each stands after those whose fields its conditions name."""
    configured: Mapping[str, Any]
    """The value of every field in the configuration that the space was made for."""

    def active(self, sample: Sample, config: TrainConfig) -> tuple[Dimension, ...]:
        """The dimensions whose conditions hold; fields that the sample lacks have the value of the
        configuration.
        """
        values = {**fields.values_of(config), **sample}
        return tuple(dimension for dimension in self.dimensions if dimension.applies(values))

    def given(self, config: TrainConfig) -> Sample:
        """The sample that is nearest to the configuration: an end of a range, or a choice."""
        values, sample = fields.values_of(config), {}
        for dimension in self.dimensions:
            if dimension.applies(values | sample):
                sample |= dimension.nearest(values)
        return sample

    def outside(self, config: TrainConfig) -> tuple[str, ...]:
        """The dimensions that do not hold the values of the configuration, so that `given` is
        another configuration.
        """
        values = fields.values_of(config)
        return tuple(d.name for d in self.active({}, config) if not d.holds(values))

    def completed(self, sample: Sample) -> Sample:
        """The sample with the configured values of the active fields that it lacks."""
        values = {**self.configured, **sample}
        active = [dimension for dimension in self.dimensions if dimension.applies(values)]
        return {field: values[field] for dimension in active for field in dimension.fields}

    def fits(self, sample: Sample) -> bool:
        """Whether a sample, perhaps of a smaller space, is one of this space when it is completed.
        A field that is not searched here must have its configured value.
        """
        values, whole = {**self.configured, **sample}, self.completed(sample)
        active = [dimension for dimension in self.dimensions if dimension.applies(values)]
        others = [field for field in sample if field not in whole]
        return all(dimension.holds(values) for dimension in active) and all(
            field in self.configured and same(self.configured[field], sample[field])
            for field in others
        )

    def grid(self, points: int) -> list[Sample]:
        """Every combination of the choices and of `points` values of each range. `UsageError` for
        more than 10,000.
        """
        most = math.prod(len(dimension.points(points)) for dimension in self.dimensions)
        samples = list[Sample]([{}])
        for dimension in self.dimensions:
            samples = multiplied(samples, dimension, self.configured, points)
            if len(samples) > MOST_OF_A_GRID:
                raise UsageError(
                    f"sweep.space: a grid of {points} values a range has up to {most} combinations,"
                    f" the most is {MOST_OF_A_GRID}; search fewer fields, or fewer values of each"
                )
        return samples

    def valid(self, config: TrainConfig, sample: Sample) -> str | None:
        """Why the configuration with this sample is refused; None where it is not."""
        try:
            apply(config, sample)
        except ValidationError as error:
            return fields.reason(error)
        return None


def multiplied(
    samples: Sequence[Sample], dimension: Dimension, configured: Mapping[str, Any], points: int
) -> list[Sample]:
    """Each sample with each value of the dimension where its conditions hold, without one where
    they do not.
    """
    values = dimension.points(points)
    return [
        {**sample, **value}
        for sample in samples
        for value in (values if dimension.applies({**configured, **sample}) else [{}])
    ]


def modern(sample: Sample) -> Sample:
    """A sample whose fields may have the names of the version before this one."""
    return {OLD_NAMES.get(name, name): value for name, value in sample.items()}


def apply(config: TrainConfig, sample: Sample) -> TrainConfig:
    """The configuration with the values of the sample in their sections, validated again. The
    sample may have old names.
    """
    sections = config.model_dump()
    for name, value in modern(sample).items():
        *path, field = name.split(".")
        section = sections
        for part in path:
            section = section[part]
        section[field] = value
    return TrainConfig.model_validate(sections)


def rounded(sample: Sample) -> Sample:
    """Four significant digits of each number, so that one can read and type what is trained; lists
    and integers stay as they are.
    """
    return {name: four_digits(value) for name, value in sample.items()}


def trial_name(sample: Sample) -> str:
    """trial-<digest of the rounded sample>: a repeated sample continues in its own run folder,
    whatever name Tune gives it.
    """
    text = json.dumps(dict(rounded(sample)), sort_keys=True)
    return f"trial-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def shown(sample: Sample) -> str:
    """The sample for a line: `loss.gamma 2, model.anchors.ratios 0.5,1,2`."""
    return ", ".join(f"{name} {fields.shown(value)}" for name, value in sample.items())


def recipe(config: TrainConfig) -> dict[str, Any]:
    """The configuration as `train --config` takes it; name, storage and data come from the command
    line, as with pipelines/recipes.
    """
    return config.model_dump(mode="json", exclude={"name", "storage", "data"})
