"""What a shard set contains, in lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cluster.errors import on_one_line
from cluster.shards.format import FREQUENCIES
from cluster.shards.index import Duplicates, Index
from cluster.shards.quarantine import Quarantined, by_reason, example_of


def summary_lines(index: Index, quarantined: Sequence[Quarantined]) -> list[str]:
    """The numbers of index.json and of the quarantine, for a terminal. The index of sources that
    were only checked has neither shards nor a digest.
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
    lines.append(
        f"boxes       {counts.boxes} of {counts.listed_annotations} listed, of"
        f" {len(index.categories)} classes{_frequencies(index)}, of which {counts.crowds} crowds"
    )
    if len(sources) > 1:
        lines += [
            f"source      {source.images} images of {source.name} ({source.format})"
            for source in sources
        ]
    if index.set_digest:
        lines.append(f"digest      {index.set_digest}")
    lines += [f"repaired    {count} x {what}" for what, count in index.repairs.items()]
    lines += [f"passed over {count} x {what}" for what, count in index.passed_over.items()]
    lines += [
        f"left out    {len(entries)} x {why} ({example_of(entries)})"
        for why, entries in by_reason(quarantined)
    ]
    if counts.lost_annotations:
        lines.append(
            f"left out    {counts.lost_annotations} x an annotation of an image that was left out"
        )
    lines += [f"warning     {sentence}" for sentence in index.warnings]
    lines += [f"{kind:12s}{sentence}" for kind, sentence in duplicate_sentences(index.duplicates)]
    return [on_one_line(line) for line in lines]


def _frequencies(index: Index) -> str:
    """How many classes are rare, common and frequent, where the source says it."""
    counts = Counter(category.frequency for category in index.categories)
    parts = [f"{counts[key]} {word}" for key, word in FREQUENCIES.items() if counts[key]]
    return f" ({', '.join(parts)})" if parts else ""


def duplicate_sentences(duplicates: Duplicates) -> list[tuple[str, str]]:
    """("leak" or "duplicate", a sentence for the reader), one for every set that has pictures of
    this one.
    """
    sentences = []
    for uri, count in duplicates.counts.items():
        example = next(
            (
                f" (such as {named.file_name} = {named.same_as})"
                for named in duplicates.named
                if named.set == uri
            ),
            "",
        )
        if uri:
            sentences.append(("leak", f"{count} x a picture that is also in {uri}{example}"))
        else:
            sentences.append(("duplicate", f"{count} x the picture of another image{example}"))
    return sentences
