"""Search settings of a training, by default gamma and alpha of the focal loss: several short
trainings; the best configuration is written as YAML.

    retinaray sweep --config small_r18 --name cells \
        --data.train runs/data/train --data.val runs/data/val \
        --sweep.trials 8 --sweep.concurrent 2 --sweep.epochs 5

Repeating the command continues an interrupted sweep: finished trials are not repeated, and those
that were running continue from their checkpoints.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cluster.compute.session import RayConfig
from cluster.runs.config import TrainOptions
from cluster.tracking.config import TrackingConfig
from pipelines.command_line import run_verb
from tune.config import SweepConfig


class SweepVerb(TrainOptions):
    """Search hyper-parameters of RetinaNet."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("data.train", "data.val", "name", "sweep.preset", "sweep.space"),
        *("sweep.trials", "sweep.epochs", "sweep.hours", "sweep.concurrent"),
        *("sweep.workers", "sweep.gpus_per_worker", "sweep.confirm"),
    )
    ray: RayConfig = Field(default=RayConfig(), description="where the work runs")
    tracking: TrackingConfig = Field(
        default=TrackingConfig(), description="where the runs are recorded"
    )
    sweep: SweepConfig = Field(
        default=SweepConfig(), description="what is searched, with what budget"
    )


def main(config: SweepVerb) -> None:
    from cluster.storage.uris import refuse_job_folder
    from tune.plan import of_a_trial, space_of_sweep

    refuse_job_folder("--storage", config.storage)
    options = TrainOptions.model_validate(config.model_dump(include=set(TrainOptions.model_fields)))
    training = of_a_trial(options, config.sweep)
    # Before Ray Tune is imported, which takes seconds.
    space_of_sweep(training, config.sweep, config.storage)
    from tune.sweep import sweep

    swept = sweep(training, config.sweep, ray=config.ray, tracking=config.tracking)
    print("\n".join(swept.lines()))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        SweepVerb,
        main,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
