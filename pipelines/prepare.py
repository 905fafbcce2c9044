"""COCO JSON + images, in a folder or a bucket, -> validated shards with index, digests and quarantine.

python -m pipelines.prepare --annotations data/annotations/instances_train.json --images data/images/train --output s3://bucket/shards/train
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cluster.session import RayConfig
from pipelines.command_line import run_verb


class PrepareConfig(BaseModel):
    """Where the data is and how it is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    annotations: str = Field(min_length=1, description="COCO JSON: a local path or s3://bucket/key")
    images: str = Field(min_length=1, description="folder that the file_name fields of the JSON are relative to: a local path or s3://bucket/key")
    output: str = Field(min_length=1, description="folder of the shard set to write: a local path or s3://bucket/key")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the order in which images are stored")
    shard_size_mib: int = Field(64, ge=1, le=1024, description="MiB of images in a shard; a task holds one in memory")
    row_group_rows: int = Field(32, ge=1, le=4096, description="images in a row group, the unit of reading")
    max_quarantined: float = Field(0.05, ge=0, le=1, description="share of the images, 0 to 1, that may be left out before the whole set is refused")
    overwrite: bool = Field(False, description="replace a shard set of another source or other options at the output")
    ray: RayConfig = Field(RayConfig(), description="where the work runs")


def main(config: PrepareConfig) -> None:
    from cluster import ingest, session

    plan = ingest.plan_shards(
        annotations=config.annotations,
        images=config.images,
        output=config.output,
        seed=config.seed,
        shard_bytes=config.shard_size_mib << 20,
        row_group_rows=config.row_group_rows,
        max_quarantined=config.max_quarantined,
        overwrite=config.overwrite,
    )
    if plan.finished is None:
        session.connect(config.ray.address, num_cpus=config.ray.num_cpus)
    report(ingest.write_shards(plan, say=lambda line: print(line, flush=True)).uri)


def report(uri: str) -> None:
    from cluster import coco, ingest, shards

    index = shards.read_index(uri)
    counts = index["counts"]
    print(f"shards      {uri}   {len(index['shards'])} shards, {sum(shard['bytes'] for shard in index['shards']) / 2**20:.1f} MiB")
    print(f"images      {counts['images']}, of which {counts['empty_images']} without objects")
    print(f"boxes       {counts['boxes']} of {len(index['categories'])} classes, of which {counts['crowds']} crowds")
    print(f"digest      {index['set_digest']}")
    for what, times in index["repairs"].items():
        print(f"repaired    {times} x {what}")
    for why, times, where in ingest.top_reasons([coco.Quarantined(**record) for record in shards.read_quarantine(uri)]):
        print(f"left out    {times} x {why} (such as {where})")


if __name__ == "__main__":
    run_verb(PrepareConfig, main, description="Turn COCO data into a validated shard set.")
