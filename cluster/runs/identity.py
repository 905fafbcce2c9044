"""What makes two runs the same run."""

from __future__ import annotations

from typing import Any

from cluster.runs.config import TrainOptions
from cluster.runs.training_config import EXECUTION
from cluster.shards.index import ShardSet
from detector.image_config import DEFAULT_CANVAS


def identity(
    config: TrainOptions, train_set: ShardSet, val_set: ShardSet, *, weights: str | None
) -> dict[str, Any]:
    """The hyper-parameters, and the digests of the data and of the weight file or checkpoint that
    the run starts from (`weights`); neither worker counts nor URIs.
    """
    start = {
        "pretrained": None if config.pretrained is None else weights,
        "from_checkpoint": None if config.from_checkpoint is None else weights,
    }
    return {
        **_hyper_parameters(config),
        **start,
        "data": {"train": train_set.digest, "val": val_set.digest},
    }


def default_identity(config: TrainOptions) -> dict[str, Any]:
    """The hyper-parameters of a configuration that sets none. A run of an older version has these
    values of the settings that its version did not know.
    """
    return _hyper_parameters(TrainOptions(data=config.data))


def _hyper_parameters(config: TrainOptions) -> dict[str, Any]:
    values = config.model_dump(
        mode="json", exclude={"name": True, "storage": True, "data": True, "training": EXECUTION}
    )
    height, width = DEFAULT_CANVAS
    canvas = values["canvas"]
    # As version 0.1 had them, beside shapes too, so that its runs continue.
    canvas |= {"height": canvas["height"] or height, "width": canvas["width"] or width}
    for section, fields in _LATER.items():
        for name, default in fields.items():
            # Absent, so that a stage of `run` that an earlier version has finished is found.
            if values[section][name] == default:
                del values[section][name]
    return values


_LATER = {"loss": {"positive_iou": 0.5, "negative_iou": 0.4}}
"""Fields that version 0.1 did not have, with the values that were fixed in it."""
