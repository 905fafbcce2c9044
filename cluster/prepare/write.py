"""A plan -> a shard set: shards first, then quarantine and report, the index last.

A killed run leaves finished shards, a note beside each under `.progress/`, and no index.json; the
same call reuses the shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster.errors import DataError
from cluster.prepare import duplicates
from cluster.prepare.output import remove_other_shards
from cluster.prepare.plan import Plan, check_shares, refuse_empty
from cluster.prepare.shard_job import PROGRESS, ShardReport
from cluster.prepare.tasks import drop_images, run_or_find
from cluster.reports.anchor_fit import DEFAULT_VIEW, View
from cluster.reports.summary import duplicate_sentences
from cluster.shards.index import INDEX, Counts, Index, ShardSet, set_digest, write_index
from cluster.shards.quarantine import Quarantined, read_quarantine, write_quarantine
from cluster.storage import files, uris


@dataclass(frozen=True)
class Prepared:
    """The result of a plan. Where nothing was written the index has neither shards nor a digest and
    there is no set.
    """

    index: Index
    quarantined: Sequence[Quarantined]
    shard_set: ShardSet | None


def write_shards(
    plan: Plan, *, view: View = DEFAULT_VIEW, say: Callable[[str], None] = print
) -> Prepared:
    """Carry out a plan on the connected Ray cluster and publish the index last. Without an output,
    look at every image and write nothing. The report shows how the anchors of `view` fit.

    `DataError` when more than allowed had to be left out; the quarantine is written first, so that
    the user can read it.
    """
    if plan.finished is not None:
        say(f"{plan.output}: reusing the shard set that is already there")
        quarantined = read_quarantine(plan.finished.uri)
        if view != DEFAULT_VIEW:
            _write_report(plan.finished, quarantined, view)
        return Prepared(plan.finished.index, quarantined, plan.finished)
    others = duplicates.pictures_by_digest(plan.options.against)
    if plan.output is not None:
        files.delete_file(uris.join(plan.output, INDEX))
    reports = run_or_find(plan.job, total=len(plan.cuts), output=plan.output, say=say)
    doubled = duplicates.find_duplicates(
        (picture for report in reports for picture in report.pictures), others
    )
    drop: set[int] = set()
    if plan.options.drop_duplicates:
        drop = {one.picture.image_id for one in doubled}
    reports = drop_images(plan.job, reports, drop, say=say)

    rejected = [*plan.quarantined, *(entry for report in reports for entry in report.quarantined)]
    quarantined = [*rejected, *(duplicates.to_quarantine(doubled) if drop else [])]
    index = _to_index(plan, reports, rejected, doubled)
    if plan.output is None:
        return Prepared(index, quarantined, None)
    check_shares(plan, rejected)
    if not index.counts.images:
        raise DataError(
            f"none of the {plan.source.listed} images is left: all are in"
            f" {', '.join(plan.options.against)}; prepare other images"
        )
    refuse_empty(plan, index.counts)
    shards = tuple(report.shard for report in reports if report.shard is not None)
    index = replace(index, shards=shards)
    remove_other_shards(plan.output, {shard.name for shard in shards})
    # quarantine.parquet and report.html lie beside shards that have no index.json yet.
    write_quarantine(plan.output, quarantined)
    found = replace(index, set_digest=set_digest(index.categories, index.shards))
    _write_report(ShardSet(plan.output, found), quarantined, view)
    shard_set = write_index(plan.output, index)
    files.delete_folder(uris.join(plan.output, PROGRESS))
    return Prepared(shard_set.index, quarantined, shard_set)


def _write_report(shard_set: ShardSet, quarantined: Sequence[Quarantined], view: View) -> None:
    # It imports torch, which nothing before needs.
    from cluster.reports.data_report import write_report

    index = shard_set.index
    doubled = [sentence for _, sentence in duplicate_sentences(index.duplicates)]
    notes = [*index.warnings, *doubled]
    write_report(shard_set, quarantined, repairs=index.repairs, notes=notes, view=view)


def _to_index(
    plan: Plan,
    reports: Sequence[ShardReport],
    rejected: Sequence[Quarantined],
    doubled: Sequence[duplicates.Duplicate],
) -> Index:
    """The index without shards and digest."""
    dropped = {image_id for report in reports for image_id in report.drop}
    stored = Counter(
        picture.source
        for report in reports
        for picture in report.pictures
        if picture.image_id not in dropped
    )
    rejected_counts = Counter(entry.what for entry in rejected)
    repairs = sum((Counter(report.repairs) for report in reports), Counter(plan.repairs))
    return Index(
        categories=plan.source.categories,
        counts=Counts(
            images=sum(report.counts.images for report in reports),
            boxes=sum(report.counts.boxes for report in reports),
            crowds=sum(report.counts.crowds for report in reports),
            empty_images=sum(report.counts.empty_images for report in reports),
            quarantined=len(rejected),
            quarantined_images=rejected_counts["image"],
            quarantined_annotations=rejected_counts["annotation"],
            lost_annotations=plan.lost + sum(report.counts.lost for report in reports),
            dropped_images=len(dropped),
            listed_images=plan.source.listed,
            listed_annotations=plan.source.annotated,
        ),
        sources=tuple(
            replace(entry, images=stored[number])
            for number, entry in enumerate(plan.merged.entries)
        ),
        source_digest=plan.source.digest,
        fingerprint=plan.fingerprint,
        repairs=dict(sorted(repairs.items())),
        passed_over=dict(sorted(plan.passed_over.items())),
        warnings=tuple(finding.sentence for finding in plan.findings),
        duplicates=duplicates.to_index(doubled),
    )
