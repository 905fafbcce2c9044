"""The limits of the gate, as they are typed: `--gate.epsilon 0.005`."""

from __future__ import annotations

from pydantic import Field

from detector.config import Section


class GateConfig(Section):
    """What a model must reach before it becomes the champion."""

    min_ap: float = Field(default=0.0, ge=0, le=1, description="AP that it must have at least")
    epsilon: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description=(
            "AP by which it may be worse than the champion: the lower end of the interval of the"
            " difference must not be below minus this"
        ),
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="of the statement `not worse by more than epsilon`, one-sided",
    )
    class_drop: float = Field(
        default=0.05, ge=0, le=1, description="AP that a class may lose against the champion"
    )
    size_drop: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="AP that small, medium or large objects may lose against the champion",
    )
    min_objects: int = Field(
        default=30,
        ge=1,
        description="objects that a class or a size must have for its limit to count",
    )
    latency_ms: float | None = Field(
        default=None,
        gt=0,
        description="ms that an image may take in a fresh process here; unset: no limit",
    )
    megabytes: float | None = Field(
        default=None, gt=0, description="MB that the package may have; unset: no limit"
    )
    resamples: int = Field(default=1000, ge=100, le=100_000, description="draws of the bootstrap")
    seed: int = Field(default=0, ge=0, description="of the bootstrap")
