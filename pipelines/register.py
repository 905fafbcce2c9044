"""Register the best checkpoint of a training run as a version of a model in MLflow.

python -m pipelines.register --run runs/runs/quickstart --name quickstart
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cluster.runs import names
from cluster.tracking.config import TrackingConfig
from pipelines.command_line import run_verb


class RegisterConfig(BaseModel):
    """Which run becomes a version of which model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(
        min_length=1,
        description=(
            "folder of a training run, <storage>/runs/<run name>: a local path or s3://bucket/key"
        ),
    )
    name: names.Name = Field(
        description=(f"registered model that gets the version; a new one is created. {names.RULE}"),
    )
    tracking: TrackingConfig = Field(
        default=TrackingConfig(),
        description="MLflow; without a uri that of the training run (tracking.json)",
    )


def main(config: RegisterConfig) -> None:
    from cluster.tracking.register_run import register_run

    registered = register_run(config.run, config.name, uri=config.tracking.uri)
    print("\n".join(registered.lines()))


if __name__ == "__main__":
    run_verb(
        RegisterConfig,
        main,
        description="Register the best checkpoint of a training run in MLflow.",
    )
