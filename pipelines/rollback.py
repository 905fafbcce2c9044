"""Make the champion of before the champion again.

retinaray rollback --name cells --reason "misses platelets on the new scanner"
"""

from __future__ import annotations

from pydantic import Field

from cluster.runs import names
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb


class RollbackConfig(Section):
    """Return to the champion of before."""

    name: names.Name = Field(description="registered model")
    reason: str = Field(min_length=1, description="why, for the history")
    storage: str = Field(default="runs", description="storage root, which has the embedded MLflow")
    tracking: TrackingConfig = TrackingConfig()


def main(config: RollbackConfig) -> None:
    from cluster.tracking import promotion
    from cluster.tracking.config import tracking_uri
    from cluster.tracking.preflight import check_server

    store = tracking_uri(config.tracking.uri, config.storage)
    check_server(store, must_exist=True)
    move = promotion.roll_back(config.name, reason=config.reason, tracking=store)
    print(
        f"result   models:/{config.name}/{move.new} is the champion again; version {move.old} is"
        " previous"
    )


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        RollbackConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
