"""The settings of a training's data: the shard sets, and how often their images are sampled."""

from __future__ import annotations

from pydantic import Field, model_validator

from detector.config import Section


class DataConfig(Section):
    """Shard sets, as written by `prepare`."""

    train: str = Field(
        description="URI of the shard set to train on (a local folder or s3://bucket/key)"
    )
    val: str = Field(description="URI of the shard set to evaluate on")


class SamplingConfig(Section):
    """How often the images of data.train occur in an epoch; by default each occurs once. The number
    of images of an epoch is the same every time.
    """

    repeat_threshold: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "repeat images with rare classes: a class that is in a share s of the images, below"
            " this threshold, is repeated sqrt(threshold / s) times (LVIS uses 0.001); 0: no"
            " repeats"
        ),
    )
    source_weights: dict[str, float] = Field(
        default={},
        description=(
            "how often each image of a source occurs in an epoch, as JSON from source name to a"
            ' weight above 0 and at most 1000, such as {"night": 2, "day": 0.5}; sources without an'
            " entry have weight 1"
        ),
    )

    @model_validator(mode="after")
    def _check_weights(self) -> SamplingConfig:
        for name, weight in self.source_weights.items():
            if not 0 < weight <= 1000:
                raise ValueError(
                    f"sampling.source_weights {name} {weight:g}: must be above 0 and at most 1000;"
                    " to leave a source out, prepare a set without it"
                )
        return self
