"""Register the best checkpoint of a training run, or of a sweep's best trial, as a version of a
model in MLflow.

    retinaray register --run runs/runs/quickstart --name quickstart
    retinaray register --sweep runs/sweeps/cells --name cells --promote true
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.compute.session import RayConfig
from cluster.judging.gate_config import GateConfig
from cluster.runs import names
from cluster.tracking.config import TrackingConfig, tracking_uri
from pipelines.command_line import run_verb
from pipelines.terminal import next_command

if TYPE_CHECKING:
    from cluster.tracking.register_run import Registered


class RegisterConfig(BaseModel):
    """Which run becomes a version of which model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "folder of a training run, <storage>/runs/<run name>: a local path or s3://bucket/key"
        ),
    )
    sweep: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "in place of run: folder of a sweep, <storage>/sweeps/<name>; its best trial is"
            " registered"
        ),
    )
    name: names.Name = Field(
        description=(f"registered model that gets the version; a new one is created. {names.RULE}"),
    )
    licence: str | None = Field(
        default=None, min_length=1, description="of the model, for its card, such as CC-BY-4.0"
    )
    promote: bool = Field(
        default=False,
        description="then make it the champion, if it passes the gate; see promote",
    )
    gate: GateConfig = GateConfig()
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = Field(
        default=TrackingConfig(),
        description="MLflow; without a uri that of the training run (tracking.json)",
    )

    @model_validator(mode="after")
    def _check_source(self) -> RegisterConfig:
        if (self.run is None) == (self.sweep is None):
            given = "neither is" if self.run is None else "both are"
            raise ValueError(
                f"run and sweep: {given} given; give one, --run for a training run or --sweep"
                " for the best trial of a sweep"
            )
        for name, default in (("gate", GateConfig()), ("ray", RayConfig())):
            if getattr(self, name) != default and not self.promote:
                raise ValueError(f"{name}: does nothing without --promote true; give both")
        return self


def main(config: RegisterConfig) -> None:
    from cluster.tracking.register_run import register_run

    run = config.run
    if config.sweep is not None:
        from tune.results import best_run

        run = best_run(config.sweep)
    assert run is not None, "checked by the configuration"
    registered = register_run(run, config.name, uri=config.tracking.uri, licence=config.licence)
    print("\n".join(registered.lines()))
    if config.promote:
        _promote(config, registered)
    elif "challenger" in registered.aliases and "champion" not in registered.aliases:
        # `promote` finds the store below runs/ by itself.
        store = registered.tracking_uri
        uri = None if store == tracking_uri(None, "runs") else store
        model = f"models:/{config.name}@challenger"
        print(next_command("promote", model=model, tracking__uri=uri))


def _promote(config: RegisterConfig, registered: Registered) -> None:
    from pipelines.promotion_run import Asked, promote_run
    from pipelines.scoring_inputs import Replicas

    promoted = promote_run(
        str(registered.version),
        None,
        gate=config.gate,
        asked=Asked(),
        replicas=Replicas(workers=2, cpus_per_worker=0.75, gpus_per_worker=0),
        ray=config.ray,
        tracking=TrackingConfig(uri=registered.tracking_uri),
        storage="runs",
    )
    print("\n".join(promoted.lines()))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        RegisterConfig,
        main,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
