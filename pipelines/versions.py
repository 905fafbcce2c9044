"""List the versions of a registered model with their aliases, scores and verdicts.

retinaray versions --name cells
"""

from __future__ import annotations

from pydantic import Field

from cluster.runs import names
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb


class VersionsConfig(Section):
    """The versions of a registered model."""

    name: names.Name = Field(description="registered model")
    storage: str = Field(default="runs", description="storage root, which has the embedded MLflow")
    tracking: TrackingConfig = TrackingConfig()


def main(config: VersionsConfig) -> None:
    from cluster.tracking import audit
    from cluster.tracking.config import tracking_uri
    from cluster.tracking.preflight import check_server

    store = tracking_uri(config.tracking.uri, config.storage)
    check_server(store, must_exist=True)
    print("\n".join(audit.read_audit(config.name, tracking=store).version_lines()))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        VersionsConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
