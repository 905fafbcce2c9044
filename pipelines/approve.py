"""Approve a promotion that another person has asked for.

retinaray approve --model models:/cells/3
"""

from __future__ import annotations

from pydantic import Field

from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb


class ApproveConfig(Section):
    """Approval of a promotion."""

    model: str = Field(description="registered model that waits for approval: models:/NAME/3")
    storage: str = Field(default="runs", description="storage root, which has the embedded MLflow")
    tracking: TrackingConfig = TrackingConfig()


def main(config: ApproveConfig) -> None:
    from pipelines.promotion_run import approve_run

    approved = approve_run(config.model, tracking=config.tracking, storage=config.storage)
    print("\n".join(approved.lines()))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        ApproveConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
