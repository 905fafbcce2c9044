"""The search space of a sweep over the fields of the training configuration, and how a sample of it
becomes a training configuration. Nothing heavy is imported here: `--help` reads this file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig, TrainOptions
from tune import fields
from tune.dimensions import Dimension, Range, four_digits, same

MOST_OF_A_GRID = 10_000
OLD_NAMES = {
    "gamma": "loss.gamma",
    "alpha": "loss.alpha",
    "learning_rate": "optimizer.learning_rate",
}
"""What the version before this one could search, with the names of today."""

Options = TypeVar("Options", bound=TrainOptions)
_OF_THE_MACHINES = {"workers", "gpus_per_worker", "decode_threads"}
"""Fields of the section training that `cluster.training.automatic` decides."""

Sample = Mapping[str, Any]
"""JSON value by field, such as {"loss.gamma": 2.0, "loss.box": "giou"}. Fields whose conditions do
not hold are absent.
"""


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

    @property
    def size(self) -> int | None:
        """Number of settings; None where there is a range, or too many to count."""
        if any(isinstance(dimension.values, Range) for dimension in self.dimensions):
            return None
        try:
            return len(self.grid(points=2))
        except UsageError:
            return None

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


def apply(config: Options, sample: Sample) -> Options:
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
    return type(config).model_validate(sections)


def key(config: TrainConfig, sample: Sample) -> str:
    """What a sample trains. Samples of different fields may make the same configuration."""
    return apply(config, rounded(sample)).model_dump_json()


def rounded(sample: Sample) -> Sample:
    """Four significant digits of each number, so that one can read and type what is trained; lists
    and integers stay as they are.
    """
    return {name: four_digits(value) for name, value in sample.items()}


def trial_name(sample: Sample, epochs: int) -> str:
    """trial-<digest of the rounded sample and the length>: a repeated sample continues in its own
    run folder, whatever name Tune gives it.
    """
    text = json.dumps([dict(rounded(sample)), epochs], sort_keys=True)
    return f"trial-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def shown(sample: Sample) -> str:
    """The sample for a line: `loss.gamma 2, model.anchors.ratios 0.5,1,2`."""
    return ", ".join(f"{name} {fields.shown(value)}" for name, value in sample.items())


def recipe(config: TrainConfig) -> dict[str, Any]:
    """The configuration as `train --config` takes it; name, storage and data come from the command
    line, as with pipelines/recipes. Workers, GPUs and threads are those of the machines on which
    it trains.
    """
    return config.model_dump(
        mode="json",
        exclude={"name": True, "storage": True, "data": True, "training": _OF_THE_MACHINES},
    )
