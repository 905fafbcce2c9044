"""Annotated sources -> a plan: which image goes into which shard. No Ray, no pixel, and nothing is
written but the quarantine of sources that are refused.

The plan depends on the sources and the options alone, so any number of workers writes the same
bytes. `write` carries it out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from cluster.errors import DataError, UsageError, joined
from cluster.formats.annotations import Images, Source
from cluster.formats.read import MergedSources, SourcePaths, check_paths, read_sources
from cluster.prepare.listing import ListedImages, match_files
from cluster.prepare.output import refuse_foreign, refuse_sources
from cluster.prepare.plausibility import Fault, Finding, implausible
from cluster.prepare.shard_job import ShardJob
from cluster.shards.format import SCHEMA_VERSION, shard_name
from cluster.shards.index import INDEX, Counts, ShardSet, open_shard_set
from cluster.shards.quarantine import (
    QUARANTINE,
    Quarantined,
    by_reason,
    example_of,
    write_quarantine,
)
from cluster.storage import files, parquet_pictures, preflight, uris
from detector.image import MAX_PIXELS

Split = Literal["all", "train", "val"]


@dataclass(frozen=True)
class Options:
    """How sources become a set. All but `accept` and the `max_quarantined` limits are part of its
    identity.

    `max_quarantined` and `max_quarantined_annotations` are shares, 0 to 1, of the images and the
    annotations listed. `drop_duplicates` leaves out pictures that occur twice or are in one of the
    shard sets `against`; without it they are only reported. `val_share` is the share of the images
    in split val.
    """

    split: Split = "all"
    val_share: float = 0.1
    seed: int = 0
    shard_bytes: int = 64 << 20
    row_group_rows: int = 32
    max_pixels: int = MAX_PIXELS
    max_quarantined: float = 0.05
    max_quarantined_annotations: float = 0.05
    drop_duplicates: bool = False
    against: tuple[str, ...] = ()
    accept: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Checked sources, cut into shards; nothing is written yet. Without `output` nothing ever is.

    `images` are those of the sources under the names of their files; `sizes_I` are the files' sizes
    in bytes and `changed_I` the times of their last change in ns. `cuts` are positions in `images`,
    one array a shard. `quarantined`, `repairs`, `passed_over` (files by reason), `findings` and
    `lost` (annotations that went with an image) are those known before any image is read.
    `finished` is the set where a former run has already written it.
    """

    merged: MergedSources
    images: Images
    sizes_I: np.ndarray
    changed_I: np.ndarray
    cuts: tuple[np.ndarray, ...]
    folders: tuple[str, ...]
    output: str | None
    options: Options
    quarantined: tuple[Quarantined, ...]
    repairs: dict[str, int]
    passed_over: dict[str, int]
    findings: tuple[Finding, ...]
    lost: int
    fingerprint: str
    finished: ShardSet | None

    @property
    def source(self) -> Source:
        return self.merged.source

    def job(self, number: int) -> ShardJob:
        """The job of a shard, made when it is needed: all of them would hold every annotation."""
        name, cut = shard_name(number, len(self.cuts)), self.cuts[number].tolist()
        images = tuple(self.images[position] for position in cut)
        # With the time of the last change: a file of the same size and other content is another
        # input.
        inputs = [
            (image, int(self.sizes_I[position]), int(self.changed_I[position]))
            for image, position in zip(images, cut, strict=True)
        ]
        options = self.options
        return ShardJob(
            name=name,
            images=images,
            folders=self.folders,
            output=self.output,
            row_group_rows=options.row_group_rows,
            max_pixels=options.max_pixels,
            category_ids=self.source.category_ids,
            fingerprint=_digest(
                SCHEMA_VERSION, name, inputs, options.row_group_rows, options.max_pixels
            ),
        )


def source_name(annotations: str) -> str:
    """The name of a source that the user did not name."""
    return annotations.rstrip("/").rsplit("/", 1)[-1].removesuffix(".json")


def plan_shards(
    sources: Sequence[SourcePaths],
    *,
    output: str | None,
    options: Options,
    overwrite: bool = False,
) -> Plan:
    """Read and check the annotations, list the images, cut them into shards. Needs no Ray and reads
    no image.

    `UsageError` for what is not there, or for a finished set of other sources or other options at
    `output`; `DataError` for a source that cannot be used or of which more than allowed would
    already be left out.
    """
    sources = [source.absolute() for source in sources]
    options = replace(options, against=tuple(map(uris.absolute, options.against)))
    output = uris.absolute(output) if output is not None else None
    _check_places(sources, options.against, output)
    against = [open_shard_set(uri).digest for uri in options.against]
    merged = read_sources(sources, split=options.split, val_share=options.val_share)
    folders = tuple(source.folder() for source in sources)
    listed = match_files(merged.source, folders, split=options.split, val_share=options.val_share)
    fingerprint = _set_fingerprint(merged, listed, options, against)
    sizes = listed.sizes_I[listed.usable]
    cuts = cut_shards(
        sizes,
        seed=options.seed,
        shard_bytes=options.shard_bytes,
        blocks_I=_blocks(listed.images)[listed.usable],
    )
    counts_I = np.diff(merged.source.images.first_I1)
    finished = None
    if output is not None and not overwrite:
        finished = _find_finished(output, fingerprint)
    plan = Plan(
        merged=merged,
        images=listed.images,
        sizes_I=listed.sizes_I,
        changed_I=listed.changed_I,
        cuts=tuple(listed.usable[cut] for cut in cuts),
        folders=folders,
        output=output,
        options=options,
        quarantined=(*merged.source.quarantined, *listed.quarantined),
        repairs=merged.source.repairs | listed.repairs,
        passed_over={**merged.source.passed_over, **listed.passed_over},
        findings=implausible(merged),
        lost=merged.source.lost + int(counts_I.sum() - counts_I[listed.usable].sum()),
        fingerprint=fingerprint,
        finished=finished,
    )
    if plan.finished is None and output is not None:
        check_shares(plan, plan.quarantined)
        refuse_implausible(plan)
    return plan


def _check_places(
    sources: Sequence[SourcePaths], against: Sequence[str], output: str | None
) -> None:
    if output is not None:
        refuse_sources(output, sources, against)
    for uri in against:
        preflight.check_readable(uri)
    for source in sources:
        check_paths(source)
    if output is not None:
        preflight.check_writable(output)
        refuse_foreign(output)


def _blocks(images: Images) -> np.ndarray:
    """The number of each image's block: the images that should be read together, which are
    neighbours in a Parquet file; of any other image, one of its own.
    """
    numbers: dict[object, int] = {}
    blocks = []
    for i, (name, source) in enumerate(zip(images.names, images.sources_I.tolist(), strict=True)):
        place = parquet_pictures.split(name)
        key = i if place is None else (source, place[0], place[1] // parquet_pictures.BLOCK)
        blocks.append(numbers.setdefault(key, len(numbers)))
    return np.array(blocks, np.int64)


def cut_shards(
    sizes: Sequence[int] | np.ndarray,
    *,
    seed: int,
    shard_bytes: int,
    blocks_I: np.ndarray | None = None,
) -> list[list[int]]:
    """Positions in a seeded order, cut where the next one would take a shard over `shard_bytes`.
    Every position once; no shard is empty. Positions of one block stay together, mixed with those
    of the other blocks of their shard; by default each is a block of its own.
    """
    cuts: list[list[int]] = []
    filled = 0
    random = np.random.default_rng(seed)
    blocks_I = (
        np.arange(len(sizes)) if blocks_I is None else np.unique(blocks_I, return_inverse=True)[1]
    )
    count = int(blocks_I.max(initial=-1)) + 1
    order = np.argsort(np.argsort(random.permutation(count))[blocks_I], kind="stable")
    for position in order.tolist():
        if not cuts or filled + sizes[position] > shard_bytes:
            cuts.append([])
            filled = 0
        cuts[-1].append(position)
        filled += int(sizes[position])
    return cuts if count == len(sizes) else [random.permutation(cut).tolist() for cut in cuts]


def _set_fingerprint(
    merged: MergedSources,
    listed: ListedImages,
    options: Options,
    against: Sequence[str],
) -> str:
    """Identifies a set before it is written: its sources, the listed files, and the options. Stored
    in index.json; changed parts or another order would make finished sets look like others.
    """
    sources = [
        {name: value for name, value in asdict(entry).items() if name != "images"}
        for entry in merged.entries
    ]
    numbers, names = listed.images.sources_I, listed.images.names
    listing = [(int(numbers[i]), names[i], int(listed.sizes_I[i])) for i in listed.usable.tolist()]
    identity = (
        options.seed,
        options.shard_bytes,
        options.row_group_rows,
        options.max_pixels,
        options.drop_duplicates,
        options.split,
        options.val_share,
    )
    # Sets from before frequencies were kept are not those of these sources.
    frequencies = [category.frequency for category in merged.source.categories]
    kept = [frequencies] if any(frequencies) else []
    return _digest(SCHEMA_VERSION, sources, listing, identity, against, *kept)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def _find_finished(output: str, fingerprint: str) -> ShardSet | None:
    """The set that a former run finished at `output`. `UsageError` where it is of other sources or
    other options.
    """
    if not files.exists(uris.join(output, INDEX)):
        return None
    shard_set = open_shard_set(output)
    if shard_set.index.fingerprint != fingerprint:
        raise UsageError(
            f"--output {output}: holds a shard set of another source or other options; give another"
            " folder or say --overwrite true"
        )
    return shard_set


def refuse_implausible(plan: Plan) -> None:
    """`DataError` where the set cannot be trained on or scored, and this was not accepted."""
    for sentence, fault in plan.findings:
        if fault is not None and fault not in plan.options.accept:
            raise DataError(joined(sentence, f"where that is meant, say --accept {fault}"))


def refuse_empty(plan: Plan, counts: Counts) -> None:
    """`DataError` where no object is left of those that were listed, and this was not accepted."""
    listed = counts.listed_annotations
    if (
        listed
        and not counts.objects
        and not {"no_objects", "only_crowds"} & set(plan.options.accept)
    ):
        raise DataError(
            f"none of the {listed} annotations listed is left as an object, so there is nothing to"
            " learn or score: see the lines that begin with left out; where that is meant, say"
            " --accept no_objects"
        )


def check_shares(plan: Plan, quarantined: Sequence[Quarantined]) -> None:
    """`DataError` with the most frequent reasons when more images or annotations are left out than
    the options allow; the quarantine is written first, so that the user can read it.
    """
    source, options = plan.source, plan.options
    _check_share(plan, "image", quarantined, source.listed, options.max_quarantined)
    _check_share(
        plan, "annotation", quarantined, source.annotated, options.max_quarantined_annotations
    )


def _check_share(
    plan: Plan, what: str, quarantined: Sequence[Quarantined], listed: int, share: float
) -> None:
    entries = [entry for entry in quarantined if entry.what == what]
    none_left = what == "image" and len(entries) >= listed
    # 0.29 x 100 is 28.999999999999996.
    allowed = int(share * listed + 1e-6)
    if len(entries) <= allowed and not none_left:
        return
    remedy = "check --images and mend the data" if what == "image" else "mend the annotations"
    if plan.output is not None:
        write_quarantine(plan.output, quarantined)
        remedy = f"see {uris.join(plan.output, QUARANTINE)}, {remedy}"
    reasons = "; ".join(
        f"{len(alike)} x {why}, {example_of(alike)}" for why, alike in by_reason(entries)[:3]
    )
    option = "max_quarantined" if what == "image" else "max_quarantined_annotations"
    rule = "none is left" if none_left else f"--{option} {share:g} allows {allowed}"
    raise DataError(
        f"{len(entries)} of {listed} {what}s had to be left out, {rule}: {reasons}; {remedy}"
    )
