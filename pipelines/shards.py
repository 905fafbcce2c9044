"""Look at a shard set: its counts, whether its bytes are unchanged, and its boxes on the images.

retinaray shards --data runs/data/train
retinaray shards --data s3://bucket/data/train --verify true --samples 8 --output look
"""

from __future__ import annotations

from pydantic import Field, model_validator

from detector.config import Section
from pipelines.command_line import run_verb


class ShardsConfig(Section):
    """Look at a shard set."""

    data: str = Field(min_length=1, description="the shard set, a local folder or s3://bucket/key")
    verify: bool = Field(
        default=False,
        description=(
            "read every shard again and compare its sha256 with the index; exit code 3 for a"
            " mismatch"
        ),
    )
    samples: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="images drawn with their boxes, chosen to show many classes at many sizes",
    )
    output: str | None = Field(
        default=None,
        description="folder for these drawings, <image id>.png: a local path or s3://bucket/key",
    )

    @model_validator(mode="after")
    def _samples_need_output(self) -> ShardsConfig:
        if self.samples and not self.output:
            raise ValueError(f"samples {self.samples}: needs --output, the folder for the drawings")
        if self.output and not self.samples:
            raise ValueError(
                f"output {self.output}: is only for drawings; say how many, such as --samples 8"
            )
        return self


def main(config: ShardsConfig) -> None:
    from cluster.reports import pictures, summary
    from cluster.shards import index, quarantine, verify
    from cluster.storage import preflight, uris

    preflight.check_readable(config.data)
    shard_set = index.open_shard_set(config.data)
    output = uris.absolute(config.output) if config.output else ""
    if output:
        preflight.check_writable(output)
    print(f"set         {shard_set.uri}")
    for line in summary.summary_lines(shard_set.index, quarantine.read_quarantine(shard_set.uri)):
        print(line, flush=True)
    if config.verify:
        verify.verify_shard_set(
            shard_set, say=lambda line: print(f"damaged     {line}", flush=True)
        )
        print(
            f"verified    {len(shard_set.shards)} of {len(shard_set.shards)} shards: every byte"
            " agrees with index.json"
        )
    if config.samples:
        print(
            f"drawn       {pictures.draw_samples(shard_set, output, count=config.samples)} pictures"
            f" in {output}"
        )


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        ShardsConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
