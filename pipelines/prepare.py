"""Annotated images, in a folder or a bucket, -> a validated shard set with an index and digests.

    retinaray prepare --annotations data/annotations/instances_train.json \
        --images data/images/train --output s3://bucket/shards/train
"""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.compute.session import RayConfig
from detector.image_config import CanvasConfig
from pipelines.command_line import run_verb
from pipelines.data_section import DataSection


class PrepareConfig(DataSection):
    """Annotated images, and the shard set that is written."""

    output: str | None = Field(
        default=None,
        description="folder of the shard set to write: a local path or s3://bucket/key",
    )
    check: bool = Field(
        default=False, description="read all annotations and images, report, and write nothing"
    )
    plan: bool = Field(
        default=False,
        description=(
            "read the annotations, list the images and say what would be written; start nothing"
        ),
    )
    overwrite: bool = Field(
        default=False, description="replace a shard set of other sources or options at the output"
    )
    canvas: CanvasConfig = CanvasConfig.model_validate({})
    ray: RayConfig = Field(default=RayConfig(), description="where the work runs")

    @model_validator(mode="after")
    def _output_or_check(self) -> PrepareConfig:
        if self.plan and self.check:
            raise ValueError("plan and check: give one; check reads every image, plan reads none")
        if not self.output and not self.check:
            raise ValueError("--output: must be given, or --check true, which writes nothing")
        return self


def main(config: PrepareConfig) -> None:
    from cluster.prepare.plan import check_shares, refuse_empty, refuse_implausible
    from cluster.reports.anchor_fit import DEFAULT_VIEW, View
    from pipelines.data_section import plan_lines, prepare_shards, summary

    if config.plan:
        print("\n".join(plan_lines(config, config.output, overwrite=config.overwrite)))
        return
    view = View(config.canvas, DEFAULT_VIEW.anchors)
    plan, prepared = prepare_shards(
        config,
        output=None if config.check else config.output,
        overwrite=config.overwrite,
        ray=config.ray,
        view=view,
    )
    # Without a canvas nobody knows yet which network it will be.
    given = "canvas" in config.model_fields_set
    print("\n".join(summary(prepared, view if given else None)))
    if config.check:
        check_shares(plan, prepared.quarantined)
        refuse_implausible(plan)
        refuse_empty(plan, prepared.index.counts)


def run() -> None:
    """The verb, with what was typed."""
    run_verb(PrepareConfig, main, description=__doc__)


if __name__ == "__main__":
    run()
