"""Look at every node of a cluster, the storage and the tracker before work starts.

    retinaray preflight --storage s3://bucket/store --tracking.uri http://mlflow:5000

Without an address of a cluster it looks at this machine, and starts nothing.
"""

from __future__ import annotations

import os

from pydantic import Field

from cluster.compute.session import RayConfig
from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb


class PreflightConfig(Section):
    """What is looked at."""

    storage: str = Field(default="runs", description="folder or s3:// prefix that holds all runs")
    network: bool = Field(
        default=False,
        description="also measure an all-reduce over all GPUs, which must be free; half a minute",
    )
    ray: RayConfig = Field(default=RayConfig(), description="where the work would run")
    tracking: TrackingConfig = Field(
        default=TrackingConfig(), description="where runs would be recorded"
    )


def main(config: PreflightConfig) -> None:
    from cluster.compute.resources import alive_nodes
    from cluster.compute.session import connect
    from cluster.preflight.cluster import check_nodes, check_this_machine
    from cluster.preflight.finding import refuse_failed
    from cluster.preflight.network import check_network, ranks_of
    from cluster.tracking.config import experiment_name, tracking_uri
    from cluster.tracking.preflight import look_at_tracker

    uri = tracking_uri(config.tracking.uri, config.storage)
    findings = [look_at_tracker(uri, experiment_name(config.tracking.experiment))]
    if config.ray.address or os.environ.get("RAY_ADDRESS"):
        connect(config.ray.address, logs=config.ray.logs)
        findings += check_nodes(config.storage)
        if config.network:
            findings.append(check_network(ranks_of(alive_nodes())))
    else:
        findings += check_this_machine(config.storage)
    print("\n".join(finding.line() for finding in findings))
    refuse_failed(findings)


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        PreflightConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
