"""The settings of a sweep: what is searched, by whom, with what budget and share of the machines.
Nothing heavy is imported here: `--help` reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.compute.resources import READ_CPUS, reading_worker
from detector.config import Section, refuse_unused
from tune.presets import Preset

TRIAL_CPUS = 0.01
"""CPUs that the process around a trial of several workers books. Its workers book their own; with
Tune's default of 1 they would wait for each other for ever.
"""
TRIALS = 8
"""Of a sweep that does not say."""
CONFIRMED = 3
"""Settings that `sweep.confirm` trains again, the given one not counted."""
Searcher = Literal["tpe", "random", "grid", "gp"]
Stopping = Literal["asha", "median", "none"]


class SweepConfig(Section):
    """What is searched, how, with what budget, and with what share of the machines."""

    preset: Preset = Field(
        default="focal",
        description=(
            "what is searched, in one word; sweep.space adds to it. paper: the ablation of the"
            " focal loss paper, each setting once, none stopped early"
        ),
    )
    space: Mapping[str, Any] = Field(
        default={},
        description=(
            "what is searched, by field: LOW..HIGH, log LOW..HIGH, int LOW..HIGH, or a list of"
            " values; A+B for fields that change together, with a list of lists; `when FIELD=VALUE`"
            " after it for a condition. An entry replaces that of the preset; none removes it"
        ),
    )
    searcher: Searcher = Field(
        default="tpe",
        description=(
            "who proposes: tpe (Optuna's tree-structured Parzen estimator), gp (Gaussian process),"
            " random, or grid (every combination; sweep.grid_points of each range)"
        ),
    )
    grid_points: int = Field(
        default=3, ge=2, le=100, description="values of each range in a grid, its ends included"
    )
    stopping: Stopping = Field(
        default="asha",
        description=(
            "how bad trials are ended early: asha (successive halving: of the trials that reach a"
            " rung the best third goes on), median (whoever is below the median of the others at"
            " the same length), or none"
        ),
    )
    trials: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description=(
            "configurations to try, those of earlier commands included; the first is the given"
            f" one. Unset: {TRIALS}, or the whole grid"
        ),
    )
    images: int | None = Field(
        default=None,
        ge=1,
        description="training images of all trials after which none is started; unset: no limit",
    )
    hours: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description=(
            "hours of this command after which no trial is started and the running ones end at"
            " their next evaluation; unset: no limit"
        ),
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
        description="epochs before a trial may be stopped early; rungs are at 1, 3, 9... times it",
    )
    seeds: int = Field(
        default=1,
        ge=1,
        le=100,
        description=(
            "trainings of each setting, with training.seed and the numbers after it; for grids, and"
            " for the preset paper, whose tables then have means and intervals"
        ),
    )
    confirm: bool = Field(
        default=False,
        description=(
            "train the best three settings and the given one again at full length with another"
            " seed, and say whether the winner is better than the given one"
        ),
    )
    keep: int = Field(
        default=3,
        ge=1,
        le=10_000,
        description="trials whose checkpoints are kept, the best ones; those of others are deleted",
    )
    same_failures: int = Field(
        default=3,
        ge=1,
        le=10_000,
        description="trials that fail alike, before any has a result, after which the sweep ends",
    )
    retries: int = Field(
        default=2,
        ge=0,
        le=100,
        description="times that a trial is started again whose process or node is gone",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the searcher")
    concurrent: int = Field(
        default=2,
        ge=1,
        le=1024,
        description="trials at the same time; fewer where the cluster is too small for so many",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="processes of one trial; several are a group of Ray Train, also on many nodes",
    )
    cpus_per_worker: float = Field(
        default=0.5,
        gt=0,
        le=256,
        description=(
            f"CPUs that each worker books; reading books {READ_CPUS} more for each, and a trial of"
            f" several workers {TRIAL_CPUS}"
        ),
    )
    gpus_per_worker: float = Field(
        default=0,
        ge=0,
        le=1,
        description=(
            "GPUs that each worker books: 0, 1, or with one worker a part of one, such as 0.25 for"
            " four trials on each GPU"
        ),
    )

    @property
    def process(self) -> dict[str, float]:
        """What the process of a trial books that Ray Tune starts: the one worker, or next to
        nothing beside a group of workers.
        """
        return {"CPU": TRIAL_CPUS} if self.workers > 1 else self._worker

    @property
    def processes(self) -> list[dict[str, float]]:
        """What a trial books, by process."""
        return [self.process, *([self._worker] * self.workers if self.workers > 1 else [])]

    @property
    def _worker(self) -> dict[str, float]:
        return reading_worker(self.cpus_per_worker, self.gpus_per_worker)

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        if self.workers > 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(
                f"sweep.gpus_per_worker {self.gpus_per_worker:g}: must be 0 or 1 with"
                f" sweep.workers {self.workers}, because NCCL needs a GPU for each rank; only a"
                " trial of one worker can take a part of a GPU"
            )
        added = [name for name, entry in self.space.items() if entry not in ("none", None)]
        if self.preset == "paper" and added:
            raise ValueError(
                f"sweep.space.{added[0]}: does nothing with sweep.preset paper, which trains the"
                " rows of the paper's tables; give the setting itself a value, for all rows, or"
                " take sweep.preset none"
            )
        if self.searcher != "grid":
            refuse_unused(self, "sweep", ["grid_points"], "without sweep.searcher grid")
            if self.preset != "paper":
                reason = "for trials that a searcher proposes, see sweep.confirm"
                refuse_unused(self, "sweep", ["seeds"], reason)
        return self


EXECUTION = {
    "concurrent",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "keep",
    "same_failures",
    "retries",
}
"""Fields that change how a sweep is executed and not its results."""
