"""What a predictor needs of a model beside the weights: the network with its canvases and
thresholds, and the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.runs.config import TrainOptions
from cluster.shards.format import Category
from cluster.shards.index import ShardSet


@dataclass(frozen=True)
class Description:
    """model.json of a package."""

    model: Mapping[str, Any]
    """Keywords of `detector.baselines.build_model`."""
    canvases: tuple[tuple[int, int], ...]
    """(height, width) in px."""
    long_side: int | None
    """px; None: no limit."""
    decode: Mapping[str, Any]
    """Keywords of `detector.decode.decode_detections`."""
    amp: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "model": dict(self.model),
            "canvases": [list(canvas) for canvas in self.canvases],
            "long_side": self.long_side,
            "decode": dict(self.decode),
            "amp": self.amp,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Description:
        """Packages from before `long_side` have none."""
        return cls(
            model=stored["model"],
            canvases=tuple((height, width) for height, width in stored["canvases"]),
            long_side=stored.get("long_side"),
            decode=stored["decode"],
            amp=stored["amp"],
        )


@dataclass(frozen=True)
class Package:
    """The description and the classes, in the order of the labels. Every checkpoint stores them."""

    description: Description
    classes: tuple[Category, ...]

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.classes]

    def to_json(self) -> dict[str, Any]:
        return {
            "description": self.description.to_json(),
            "classes": [category.to_json() for category in self.classes],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Package:
        """Raises `KeyError` for a key that is missing."""
        return cls(
            Description.from_json(stored["description"]),
            tuple(map(Category.from_json, stored["classes"])),
        )


def package_of(config: TrainOptions, shard_set: ShardSet) -> Package:
    """The package of a run over these classes."""
    model = {
        "classes": len(shard_set.categories),
        **config.model.model_dump(mode="json", exclude={"anchors"}),
        **config.model.anchors.model_dump(mode="json"),
    }
    description = Description(
        model=model,
        canvases=tuple(config.canvas.canvases),
        long_side=config.canvas.long_side,
        decode=config.decode.model_dump(mode="json"),
        amp=config.training.amp,
    )
    return Package(description, tuple(shard_set.categories))
