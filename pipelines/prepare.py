"""Annotated images, in a folder or a bucket, -> validated shards with index, digests and
quarantine.

python -m pipelines.prepare --annotations data/annotations/instances_train.json --images
data/images/train --output s3://bucket/shards/train
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.compute.session import RayConfig
from pipelines.command_line import run_verb

Format = Literal["coco", "voc", "yolo"]


class SourceConfig(BaseModel):
    """One of several sources that are united by the names of their classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200, description="what the index calls it")
    format: Format = Field("coco", description="how it is annotated")
    annotations: str = Field(
        min_length=1, description="COCO JSON, folder of VOC XML files or folder of YOLO label files"
    )
    images: str = Field(min_length=1, description="folder of its images")


class PrepareConfig(BaseModel):
    """Where the data is and how it is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    annotations: str | None = Field(
        None,
        description=(
            "COCO JSON, folder of VOC XML files or folder of YOLO labels: a local path or"
            " s3://bucket/key"
        ),
    )
    images: str | None = Field(
        None,
        description=(
            "folder that the file names of the annotations are relative to: a local path or"
            " s3://bucket/key"
        ),
    )
    format: Format = Field("coco", description="how the images are annotated")
    sources: tuple[SourceConfig, ...] = Field(
        (),
        description=(
            "several sources instead of annotations, images and format; a list in YAML or JSON"
        ),
    )
    output: str | None = Field(
        None, description="folder of the shard set to write: a local path or s3://bucket/key"
    )
    check: bool = Field(
        False, description="look at all annotations and images, report, and write nothing"
    )
    split: Literal["all", "train", "val"] = Field(
        "all", description="which part of the images, chosen by a hash of the file name"
    )
    val_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the images, 0 to 1, that are split val; the others are split train",
    )
    against: tuple[str, ...] = Field(
        (),
        description=(
            "other shard sets, such as the one trained on: pictures that are in them too are named"
        ),
    )
    duplicates: Literal["report", "drop"] = Field(
        "report",
        description="whether pictures that come twice, or are in `against`, stay in the set",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the order in which images are stored")
    shard_size_mib: int = Field(
        64, ge=1, le=1024, description="MiB of images in a shard; a task holds one in memory"
    )
    row_group_rows: int = Field(
        32, ge=1, le=4096, description="images in a row group, the unit of reading"
    )
    # At most `detector.image.MAX_PIXELS`: what is stored must be readable by everything behind.
    max_pixels: int = Field(
        100_000_000,
        ge=1,
        le=100_000_000,
        description="pixels (width x height) above which an image is left out unread",
    )
    max_quarantined: float = Field(
        0.05,
        ge=0,
        le=1,
        description=(
            "share of the images, 0 to 1, that may be left out before the whole set is refused"
        ),
    )
    max_quarantined_annotations: float = Field(
        0.05,
        ge=0,
        le=1,
        description="the same for the annotations, of images that are not left out",
    )
    overwrite: bool = Field(
        False, description="replace a shard set of another source or other options at the output"
    )
    ray: RayConfig = Field(RayConfig(), description="where the work runs")

    @model_validator(mode="after")
    def name_one_kind_of_source(self) -> PrepareConfig:
        if self.sources and (self.annotations or self.images):
            raise ValueError(
                "sources: is given together with annotations or images; give the one or the other"
            )
        if not self.sources and not (self.annotations and self.images):
            raise ValueError(
                "--annotations and --images: must both be given, or `sources` for several"
            )
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(
                f"sources: two have the name {max(names, key=names.count)!r}; give each its own"
            )
        if not self.output and not self.check:
            raise ValueError("--output: must be given, or --check true, which writes nothing")
        return self


def main(config: PrepareConfig) -> None:
    from cluster.compute.session import connect
    from cluster.formats.read import SourcePaths
    from cluster.prepare.plan import check_shares, plan_shards, source_name, write_shards
    from cluster.reports.summary import summary_lines

    short = SourcePaths(
        source_name(config.annotations or ""),
        config.format,
        config.annotations or "",
        config.images or "",
    )
    options = {
        "seed",
        "row_group_rows",
        "max_pixels",
        "max_quarantined",
        "max_quarantined_annotations",
        "against",
        "split",
        "val_share",
        "overwrite",
    }
    plan = plan_shards(
        [SourcePaths(**source.model_dump()) for source in config.sources] or [short],
        output=None if config.check else config.output,
        shard_bytes=config.shard_size_mib << 20,
        drop_duplicates=config.duplicates == "drop",
        **config.model_dump(include=options),
    )
    if plan.finished is None:
        connect(config.ray.address, num_cpus=config.ray.num_cpus)
    prepared = write_shards(plan, say=lambda line: print(line, flush=True))
    if prepared.shard_set is not None:
        print(f"set         {prepared.shard_set.uri}")
    print(
        "\n".join(summary_lines(prepared.index, [vars(record) for record in prepared.quarantined]))
    )
    if config.check:
        check_shares(plan, prepared.quarantined)


if __name__ == "__main__":
    run_verb(PrepareConfig, main, description="Turn annotated images into a validated shard set.")
