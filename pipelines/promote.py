"""Make a registered version the champion, if it is not worse than the one in use.

retinaray promote --model models:/cells@challenger
retinaray promote --model models:/cells/3 --data runs/data/val --gate.epsilon 0.005
"""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.compute.session import RayConfig
from cluster.judging.gate_config import GateConfig
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb
from pipelines.replica_options import CPUS_PER_WORKER, GPUS_PER_WORKER, WORKERS


class PromoteConfig(Section):
    """Promotion of a registered version."""

    model: str = Field(
        description="registered model: models:/NAME@challenger, the newest one, or models:/NAME/3"
    )
    data: str | None = Field(
        default=None,
        description=(
            "shard set on which it is compared with the champion; unset: the one on which its"
            " training was evaluated"
        ),
    )
    classes: str | None = Field(
        default=None,
        description=(
            "YAML file with lines `class of the data: class of the model`, for classes of other"
            " names"
        ),
    )
    gate: GateConfig = GateConfig()
    force: bool = Field(
        default=False,
        description="promote although the gate says no; recorded for ever, with --reason",
    )
    reason: str | None = Field(
        default=None, min_length=1, description="why, for the history; unset: what the gate found"
    )
    needs_approval: bool = Field(
        default=False, description="only after another person has approved it, see approve"
    )
    storage: str = Field(default="runs", description="storage root, which has the embedded MLflow")
    workers: int = WORKERS
    cpus_per_worker: float = CPUS_PER_WORKER
    gpus_per_worker: float = GPUS_PER_WORKER
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _force_has_a_reason(self) -> PromoteConfig:
        if self.force and self.reason is None:
            raise ValueError("force true: needs --reason TEXT, which the history keeps; give one")
        return self


def main(config: PromoteConfig) -> None:
    from pipelines.promotion_run import Asked, promote_run
    from pipelines.scoring_inputs import Replicas

    promoted = promote_run(
        config.model,
        config.data,
        gate=config.gate,
        asked=Asked(config.reason, config.force, config.needs_approval),
        class_map=config.classes,
        replicas=Replicas(config.workers, config.cpus_per_worker, config.gpus_per_worker),
        ray=config.ray,
        tracking=config.tracking,
        storage=config.storage,
    )
    print("\n".join(promoted.lines()))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        PromoteConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
