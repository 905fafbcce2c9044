"""What every worker of a training is told: its configuration, and what the driver has decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from cluster.runs.config import TrainConfig
from cluster.runs.package import Package

VERSION = 2


@dataclass(frozen=True)
class Job:
    """All URIs are absolute: workers run elsewhere."""

    config: TrainConfig
    """The whole configuration of the run."""
    run: str
    """URI of the run's folder."""
    run_uuid: str
    """Tells runs apart that had the same URI one after the other, see `run_folder.claim`."""
    train_data: str
    """URI of the shard set to train on."""
    val_data: str
    """URI of the shard set to evaluate on."""
    decode_in: Literal["threads", "tasks"]
    """Where images are decoded and augmented, see `TrainingConfig.decode`."""
    evaluate: Literal["beside", "between"]
    """Where checkpoints are evaluated, see `TrainingConfig.evaluation`."""
    weight_file: str | None
    """URI of the weight file that a new run starts from."""
    parent_checkpoint: str | None
    """URI of another run's checkpoint that a new run starts from."""
    package: Package
    """Every checkpoint stores it."""
    pictures: bool = False
    """Whether rank 0 tells what its first batches look like."""

    def to_json(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **values,
            "version": VERSION,
            "config": self.config.model_dump(mode="json"),
            "package": self.package.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Job:
        """`ValueError` for another version: driver and workers must run the same code."""
        values = dict(content)
        version = values.pop("version", None)
        if version != VERSION:
            raise ValueError(f"job of version {version}: this code reads version {VERSION}")
        values["config"] = TrainConfig.model_validate(values["config"])
        values["package"] = Package.from_json(values["package"])
        return cls(**values)
