"""Annotated sources -> a shard set: planned on the driver, carried out by one Ray task a shard
(`shard_jobs`).

A killed run leaves finished shards, a note beside each under `.progress/`, and no index.json; the
same call picks the shards up again. The plan depends on the sources and the options alone, so any
number of workers writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.errors import DataError, UsageError
from cluster.formats.annotations import Images, Source
from cluster.formats.names import composed
from cluster.formats.read import MergedSources, SourcePaths, check_paths, read_sources
from cluster.prepare import duplicates
from cluster.prepare.image import MISSING, leave_out
from cluster.prepare.tasks import PROGRESS, ShardJob, ShardReport, drop_images, run_or_find
from cluster.reports.summary import duplicate_sentences
from cluster.shards.format import REPORT, SCHEMA_VERSION, shard_name
from cluster.shards.index import (
    INDEX,
    Counts,
    Index,
    IndexedSource,
    ShardSet,
    open_shard_set,
    set_digest,
    write_index,
)
from cluster.shards.quarantine import (
    QUARANTINE,
    Quarantined,
    by_reason,
    read_quarantine,
    write_quarantine,
)
from cluster.storage import files, preflight, uris
from detector.image import MAX_PIXELS

# Images are held in memory by the shard; what is larger than this is a scan or no image at all.
MAX_FILE_BYTES = 256 << 20
RENAMED = "file names in another Unicode form than the files, taken as the files have them"


@dataclass(frozen=True)
class Options:
    """What the bytes depend on besides the sources (the first four), and what decides whether the
    set is good enough.

    `max_quarantined` and `max_quarantined_annotations` are shares, 0 to 1, of the images and the
    annotations listed. `drop_duplicates` leaves out pictures that come twice or are in one of the
    shard sets `against`; without it they are only named.
    """

    seed: int = 0
    shard_bytes: int = 64 << 20
    row_group_rows: int = 32
    max_pixels: int = MAX_PIXELS
    max_quarantined: float = 0.05
    max_quarantined_annotations: float = 0.05
    drop_duplicates: bool = False
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Checked sources, cut into shards; nothing is written yet. Without `output` nothing ever is.
    `finished` is a set that is there already.
    """

    united: MergedSources
    images: Images
    sizes_I: np.ndarray
    changed_I: np.ndarray
    cuts: tuple[np.ndarray, ...]
    folders: tuple[str, ...]
    output: str | None
    options: Options
    quarantined: tuple[Quarantined, ...]
    repairs: dict[str, int]
    lost: int
    fingerprint: str
    finished: ShardSet | None

    def job(self, number: int) -> ShardJob:
        name = shard_name(number, len(self.cuts))
        cut = tuple(self.images[place] for place in self.cuts[number])
        # With the time of the last change: a file of other content and the same size is another
        # input.
        inputs = [
            (image, int(self.sizes_I[place]), int(self.changed_I[place]))
            for image, place in zip(cut, self.cuts[number], strict=True)
        ]
        mark = digest_of(
            SCHEMA_VERSION, name, inputs, self.options.row_group_rows, self.options.max_pixels
        )
        ids = self.united.source.category_ids
        return ShardJob(
            name,
            cut,
            self.folders,
            self.output,
            self.options.row_group_rows,
            self.options.max_pixels,
            ids,
            mark,
        )


@dataclass(frozen=True)
class Prepared:
    """What came of a plan: the content of index.json, without shards and digest where nothing was
    written; what was left out; the set.
    """

    index: Index
    quarantined: Sequence[Quarantined]
    shard_set: ShardSet | None


def prepare(
    *,
    annotations: str,
    images: str,
    output: str,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    **options: Any,
) -> ShardSet:
    """One COCO JSON and its images as a shard set: `plan_shards`, then `write_shards` unless the
    set is there already. `options` are fields of `Options`. Ray must be connected."""
    place = SourcePaths(source_name(annotations), "coco", annotations, images)
    prepared = write_shards(
        plan_shards([place], output=output, overwrite=overwrite, **options), say=say
    )
    assert prepared.shard_set is not None
    return prepared.shard_set


def source_name(annotations: str) -> str:
    """The name of a source that was given none."""
    return annotations.rstrip("/").rsplit("/", 1)[-1].removesuffix(".json")


def plan_shards(
    places: Sequence[SourcePaths],
    *,
    output: str | None,
    split: str = "all",
    val_share: float = 0.1,
    overwrite: bool = False,
    **options: Any,
) -> Plan:
    """Read and check the annotations, list the images, cut them into shards. Needs no Ray and reads
    no image. `options` are fields of `Options`.

    Raises `UsageError` for what is not there or a finished set of another source or other options
    at `output`, `DataError` for a source that cannot be used or of which more than allowed would be
    left out already.
    """
    chosen = Options(**options)
    chosen = replace(chosen, against=tuple(map(uris.absolute, chosen.against)))
    places = [
        place._replace(
            annotations=uris.absolute(place.annotations), images=uris.absolute(place.images)
        )
        for place in places
    ]
    if output is not None:
        output = uris.absolute(output)
        refuse_sources(output, places, chosen.against)
    for place in places:
        check_paths(place)
    for uri in chosen.against:
        preflight.check_readable(uri)
    if output is not None:
        preflight.check_writable(output)
    others = [open_shard_set(uri).digest for uri in chosen.against]
    united = read_sources(places, split=split, val_share=val_share)
    source, counts_I = united.source, np.diff(united.source.images.first_I1)
    folders = tuple(place.images for place in places)
    images, sizes_I, changed_I, usable, quarantined, renamed = check_listed(source, folders)
    listing = [
        (int(images.sources_I[place]), images.names[place], int(sizes_I[place])) for place in usable
    ]
    identity = (
        chosen.seed,
        chosen.shard_bytes,
        chosen.row_group_rows,
        chosen.max_pixels,
        chosen.drop_duplicates,
        split,
        val_share,
    )
    fingerprint = digest_of(SCHEMA_VERSION, united.entries, listing, identity, others)
    plan = Plan(
        united=united,
        images=images,
        sizes_I=sizes_I,
        changed_I=changed_I,
        cuts=tuple(
            usable[cut]
            for cut in cut_shards(sizes_I[usable], seed=chosen.seed, shard_bytes=chosen.shard_bytes)
        ),
        folders=folders,
        output=output,
        options=chosen,
        quarantined=(*source.quarantined, *quarantined),
        repairs=source.repairs | ({RENAMED: renamed} if renamed else {}),
        lost=source.lost + int(counts_I.sum() - counts_I[usable].sum()),
        fingerprint=fingerprint,
        finished=(
            find_finished(output, fingerprint, overwrite=overwrite) if output is not None else None
        ),
    )
    if plan.finished is None and output is not None:
        check_shares(plan, plan.quarantined)
    return plan


def refuse_sources(output: str, places: Sequence[SourcePaths], against: Sequence[str]) -> None:
    """`UsageError` where a set written to `output` would change what is only to be read: see
    `is_written`, and by whatever name it is called.
    """
    target = real(output)
    for place in places:
        for flag, uri in (("images", place.images), ("annotations", place.annotations)):
            source = real(uri)
            if source == target or target.startswith(source + "/"):
                raise UsageError(
                    f"--output {output}: is --{flag} {uri} or lies in it; the source is never"
                    " written to, give another folder"
                )
            if source.startswith(target + "/") and is_written(source[len(target) + 1 :]):
                raise UsageError(
                    f"--output {output}: --{flag} {uri} has the name of a file that is written"
                    " there; give another folder"
                )
    for uri in against:
        if real(uri) == target:
            raise UsageError(f"--against {uri}: is the output itself; name the other shard sets")


def real(uri: str) -> str:
    return uri if uris.is_remote(uri) else os.path.realpath(uri)


def is_written(name: str) -> bool:
    """Whether prepare writes or deletes what has this name, relative to the folder of a set."""
    return name.split("/")[0] in (INDEX, QUARANTINE, REPORT, PROGRESS) or is_shard(name)


def is_shard(name: str) -> bool:
    return re.fullmatch(r"shard-\d{5,}-of-\d{5,}\.parquet", name) is not None


def check_listed(
    source: Source, folders: Sequence[str]
) -> tuple[Images, np.ndarray, np.ndarray, np.ndarray, list[Quarantined], int]:
    """The images under the names that their files have; the size of each file, B; when it was
    changed, ns; the positions of those that can be used; the others in the quarantine; how many
    names were found in another Unicode form."""
    images, category_ids = source.images, source.category_ids
    found: list[dict[str, tuple[int, int]]] = []
    spellings: list[dict[str, str]] = []
    for folder in folders:
        found.append(
            {
                uri[len(folder) + 1 :]: (size, changed)
                for uri, size, changed in files.list_changes(folder)
            }
        )
        spellings.append({composed(name): name for name in found[-1] if not name.isascii()})
    names, usable, quarantined, renamed = [], [], [], 0
    sizes_I, changed_I = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    for place, (name, number) in enumerate(
        zip(images.names, images.sources_I.tolist(), strict=True)
    ):
        if (
            name not in found[number]
            and (spelling := spellings[number].get(composed(name))) is not None
        ):
            name, renamed = spelling, renamed + 1
        names.append(name)
        size, changed = found[number].get(name, (None, 0))
        if size is None:
            quarantined.append(leave_out(images[place], MISSING, category_ids=category_ids))
        elif size > MAX_FILE_BYTES:
            why = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB ({size} bytes)"
            quarantined.append(leave_out(images[place], why, category_ids=category_ids))
        else:
            sizes_I[place], changed_I[place] = size, changed
            usable.append(place)
    return (
        replace(images, names=names),
        sizes_I,
        changed_I,
        np.array(usable, np.int64),
        quarantined,
        renamed,
    )


def cut_shards(
    sizes: Sequence[int] | np.ndarray, *, seed: int, shard_bytes: int
) -> list[list[int]]:
    """Positions in a seeded order, cut where the next one would take a shard over `shard_bytes`.
    Every position once; no shard is empty.
    """
    cuts: list[list[int]] = []
    filled = 0
    for place in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if not cuts or filled + sizes[place] > shard_bytes:
            cuts.append([])
            filled = 0
        cuts[-1].append(place)
        filled += int(sizes[place])
    return cuts


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def find_finished(output: str, fingerprint: str, *, overwrite: bool) -> ShardSet | None:
    """The set that a former run finished at `output` from the same source with the same options."""
    if overwrite or not files.exists(uris.join(output, INDEX)):
        return None
    shard_set = open_shard_set(output)
    if shard_set.index.fingerprint != fingerprint:
        raise UsageError(
            f"--output {output}: holds a shard set of another source or other options; give another"
            " folder or say --overwrite true"
        )
    return shard_set


def write_shards(plan: Plan, *, say: Callable[[str], None] = print) -> Prepared:
    """Carry a plan out on the connected Ray cluster and publish the index last; without an output,
    look at every image and write nothing.

    `DataError` when too much had to be left out; the quarantine is written before, for reading.
    """
    if plan.finished is not None:
        say(f"{plan.output}: the shard set is already there and fits source and options; reused")
        quarantined = read_quarantine(plan.finished.uri)
        return Prepared(plan.finished.index, quarantined, plan.finished)
    known = duplicates.known_pictures(plan.options.against)
    if plan.output is not None:
        files.delete_file(uris.join(plan.output, INDEX))
    reports = run_or_find(plan.job, total=len(plan.cuts), output=plan.output, say=say)
    found = duplicates.find_duplicates(
        (picture for report in reports for picture in report.pictures), known
    )
    drop = {one.picture.image_id for one in found} if plan.options.drop_duplicates else set()
    reports = drop_images(plan.job, reports, drop, say=say)

    left_out = [*plan.quarantined, *(record for report in reports for record in report.quarantined)]
    quarantined = [*left_out, *(duplicates.to_quarantine(found) if drop else [])]
    index = summarise(plan, reports, left_out, found)
    if plan.output is None:
        return Prepared(index, quarantined, None)
    check_shares(plan, left_out)
    if not index.counts.images:
        raise DataError(
            f"none of the {plan.united.source.listed} images is left: all are in"
            f" {', '.join(plan.options.against)}; prepare other images"
        )
    kept = [report.shard for report in reports if report.shard is not None]
    remove_strays(plan.output, {shard.name for shard in kept})
    index = replace(index, shards=tuple(kept))
    publish_findings(plan.output, index, quarantined)
    shard_set = write_index(plan.output, index)
    files.delete_folder(uris.join(plan.output, PROGRESS))
    return Prepared(shard_set.index, quarantined, shard_set)


def publish_findings(output: str, index: Index, quarantined: Sequence[Quarantined]) -> None:
    """quarantine.parquet and report.html of shards that have no index yet."""
    # It imports torch, which nothing before needs.
    from cluster.reports.data_report import write_report

    write_quarantine(output, quarantined)
    index = replace(index, set_digest=set_digest(index.categories, index.shards))
    notes = [sentence for _, sentence in duplicate_sentences(index.duplicates)]
    write_report(ShardSet(output, index), quarantined, repairs=index.repairs, notes=notes)


def summarise(
    plan: Plan,
    reports: Sequence[ShardReport],
    left_out: Sequence[Quarantined],
    found: Sequence[duplicates.Duplicate],
) -> Index:
    """The index without shards and digest. Of the images and the annotations listed
    each is in one of `counts`: stored (`images`; `boxes`, crowds among them), left out itself
    (`quarantined_...`), a duplicate (`dropped_images`), or gone with its image
    (`lost_annotations`)."""
    counts = sum((Counter(report.counts) for report in reports), Counter())
    dropped = {id_ for report in reports for id_ in report.drop}
    stored = Counter(
        picture.source
        for report in reports
        for picture in report.pictures
        if picture.image_id not in dropped
    )
    whats = Counter(record.what for record in left_out)
    repairs = sum((Counter(report.repairs) for report in reports), Counter(plan.repairs))
    return Index(
        categories=tuple(plan.united.source.categories),
        counts=Counts(
            images=counts["images"],
            boxes=counts["boxes"],
            crowds=counts["crowds"],
            empty_images=counts["empty_images"],
            quarantined=len(left_out),
            quarantined_images=whats["image"],
            quarantined_annotations=whats["annotation"],
            lost_annotations=plan.lost + counts["lost"],
            dropped_images=len(dropped),
            listed_images=plan.united.source.listed,
            listed_annotations=plan.united.source.annotated,
        ),
        sources=tuple(
            IndexedSource(**about, images=stored[number])
            for number, about in enumerate(plan.united.entries)
        ),
        source_digest=plan.united.source.digest,
        fingerprint=plan.fingerprint,
        repairs=dict(sorted(repairs.items())),
        duplicates=duplicates.describe(found),
    )


def check_shares(plan: Plan, quarantined: Sequence[Quarantined]) -> None:
    """`DataError` with the top reasons when more images or annotations were left out than allowed;
    the quarantine is written before, for reading.
    """
    limits = (
        ("image", plan.united.source.listed, "max_quarantined", plan.options.max_quarantined),
        (
            "annotation",
            plan.united.source.annotated,
            "max_quarantined_annotations",
            plan.options.max_quarantined_annotations,
        ),
    )
    for what, listed, option, share in limits:
        records = [record for record in quarantined if record.what == what]
        none_left = what == "image" and len(records) >= listed
        # 0.29 x 100 is 28.999999999999996.
        allowed = int(share * listed + 1e-6)
        if len(records) <= allowed and not none_left:
            continue
        if plan.output is not None:
            write_quarantine(plan.output, quarantined)
        top = "; ".join(
            f"{len(ones)} x {why}, such as {ones[0].where}" for why, ones in by_reason(records)[:3]
        )
        rule = "none is left" if none_left else f"--{option} {share:g} allows {allowed}"
        remedy = f"see {uris.join(plan.output, QUARANTINE)}, " if plan.output is not None else ""
        remedy += "check --images and mend the data" if what == "image" else "mend the annotations"
        raise DataError(
            f"{len(records)} of {listed} {what}s had to be left out, {rule}: {top}; {remedy}"
        )


def remove_strays(output: str, names: set[str]) -> None:
    """Shards of a former run that cut the source differently. Nothing else in the folder is
    touched.
    """
    for uri, _ in files.list_files(output):
        name = uri[len(output) + 1 :]
        if is_shard(name) and name not in names:
            files.delete_file(uri)
