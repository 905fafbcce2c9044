"""What a shard set holds, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import on_one_line
from cluster.prepare import duplicates
from cluster.shards.index import Index
from cluster.shards.quarantine import Quarantined, by_reason


def summary_lines(index: Index, quarantined: Sequence[Quarantined]) -> list[str]:
    """What the content of index.json and of the quarantine say, for a terminal. A source that was
    only checked has neither shards nor a digest.
    """
    counts, sources = index.counts, index.sources
    lines = []
    if index.shards:
        size = sum(shard.bytes for shard in index.shards)
        lines.append(f"shards      {len(index.shards)}, {size / 2**20:.1f} MiB")
    lines.append(
        f"images      {counts.images} of {counts.listed_images} listed, of which"
        f" {counts.empty_images} without objects"
    )
    of_classes = f"of {len(index.categories)} classes, of which {counts.crowds} crowds"
    lines.append(f"boxes       {counts.boxes} of {counts.listed_annotations} listed, {of_classes}")
    if len(sources) > 1:
        lines += [
            f"source      {source.images} images of {source.name} ({source.format})"
            for source in sources
        ]
    if index.set_digest:
        lines.append(f"digest      {index.set_digest}")
    lines += [f"repaired    {times} x {what}" for what, times in index.repairs.items()]
    lines += [
        f"left out    {len(records)} x {why} (such as {records[0].where})"
        for why, records in by_reason(quarantined)
    ]
    if counts.lost_annotations:
        lines.append(
            f"left out    {counts.lost_annotations} x an annotation of an image that was left out"
        )
    lines += [f"{kind:12s}{sentence}" for kind, sentence in duplicates.sentences(index.duplicates)]
    return [on_one_line(line) for line in lines]
