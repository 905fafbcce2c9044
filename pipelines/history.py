"""Show who made which version the champion, when, why and with which numbers.

retinaray history --name cells
"""

from __future__ import annotations

from pydantic import Field

from cluster.runs import names
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb


class HistoryConfig(Section):
    """The history of a registered model."""

    name: names.Name = Field(description="registered model")
    as_json: bool = Field(default=False, description="print JSON, a list of moves and refusals")
    storage: str = Field(default="runs", description="storage root, which has the embedded MLflow")
    tracking: TrackingConfig = TrackingConfig()


def main(config: HistoryConfig) -> None:
    from cluster.tracking import audit
    from cluster.tracking.config import tracking_uri
    from cluster.tracking.preflight import check_server

    store = tracking_uri(config.tracking.uri, config.storage)
    check_server(store, must_exist=True)
    found = audit.read_audit(config.name, tracking=store)
    print(found.as_json() if config.as_json else "\n".join(found.history_lines()))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        HistoryConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
