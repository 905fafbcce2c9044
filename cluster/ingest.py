"""COCO JSON + images -> a shard set: planned on the driver, carried out by one Ray task a shard.

A killed run leaves finished shards, a note beside each under `.progress/`, and no index.json; the same call picks the shards up again.
The plan depends on the source and the options alone, so any number of workers writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cluster import coco, shards, storage
from cluster.errors import DataError, PlainError, UsageError
from cluster.intake import MISSING, ingest_image, leave_out

PROGRESS = ".progress"
# Images are held in memory by the shard; what is larger than this is a scan or no image at all.
MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class ShardJob:
    """What one task needs: its images in stored order, and where they and the shard are."""

    name: str
    images: tuple[coco.ImageRecord, ...]
    images_uri: str
    output: str
    row_group_rows: int
    fingerprint: str


@dataclass(frozen=True)
class ShardReport:
    """What one task did. `shard` is None when none of its images could be used."""

    shard: shards.Shard | None
    counts: dict[str, int]
    repairs: dict[str, int]
    quarantined: tuple[coco.Quarantined, ...]


@dataclass(frozen=True)
class Plan:
    """A checked source, cut into shards; nothing is written yet."""

    source: coco.Source
    output: str
    jobs: tuple[ShardJob, ...]
    quarantined: tuple[coco.Quarantined, ...]
    max_quarantined: float
    fingerprint: str
    finished: shards.ShardSet | None


def prepare(
    *,
    annotations: str,
    images: str,
    output: str,
    seed: int = 0,
    shard_bytes: int = 64 << 20,
    row_group_rows: int = 32,
    max_quarantined: float = 0.05,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> shards.ShardSet:
    """`plan_shards`, then `write_shards` unless the set is there already. Ray must be connected."""
    plan = plan_shards(
        annotations=annotations,
        images=images,
        output=output,
        seed=seed,
        shard_bytes=shard_bytes,
        row_group_rows=row_group_rows,
        max_quarantined=max_quarantined,
        overwrite=overwrite,
    )
    return write_shards(plan, say=say)


def plan_shards(
    *,
    annotations: str,
    images: str,
    output: str,
    seed: int,
    shard_bytes: int,
    row_group_rows: int,
    max_quarantined: float,
    overwrite: bool,
) -> Plan:
    """Read and check the JSON, list the images, cut them into shards. Needs no Ray and reads no image.

    Raises `UsageError` for what is not there or a finished set of another source or other options at `output`, `DataError` for a source that
    cannot be used or of which more than `max_quarantined` (share of the images listed) would be left out already.
    """
    annotations, images, output = storage.absolute(annotations), storage.absolute(images), storage.absolute(output)
    if output == images:
        raise UsageError(f"--output {output}: is the images folder itself; the source is never written to, give another folder")
    storage.check_readable(annotations)
    storage.check_readable(images)
    storage.check_writable(output)
    source = coco.read_coco(annotations)
    sizes = {uri[len(images) + 1 :]: size for uri, size in storage.list_files(images)}
    usable, quarantined = check_listed(source.images, sizes)
    quarantined = [*source.quarantined, *quarantined]
    listing = [(image.file_name, sizes[image.file_name]) for image in usable]
    fingerprint = digest_of(shards.SCHEMA_VERSION, source.digest, listing, seed, shard_bytes, row_group_rows)

    cuts = cut_shards(usable, [size for _, size in listing], seed=seed, shard_bytes=shard_bytes)
    jobs = []
    for number, cut in enumerate(cuts):
        name = shards.shard_name(number, len(cuts))
        inputs = [(image, sizes[image.file_name]) for image in cut]
        mark = digest_of(shards.SCHEMA_VERSION, name, inputs, row_group_rows)
        jobs.append(ShardJob(name, tuple(cut), images, output, row_group_rows, mark))
    finished = find_finished(output, fingerprint, overwrite=overwrite)
    plan = Plan(source, output, tuple(jobs), tuple(quarantined), max_quarantined, fingerprint, finished)
    if finished is None:
        check_share(plan, quarantined)
    return plan


def check_listed(images: Sequence[coco.ImageRecord], sizes: dict[str, int]) -> tuple[list[coco.ImageRecord], list[coco.Quarantined]]:
    usable, quarantined = [], []
    for image in images:
        size = sizes.get(image.file_name)
        if size is None:
            quarantined.append(leave_out(image, MISSING))
        elif size > MAX_FILE_BYTES:
            quarantined.append(leave_out(image, f"the file is larger than {MAX_FILE_BYTES >> 20} MiB ({size} bytes)"))
        else:
            usable.append(image)
    return usable, quarantined


def cut_shards(images: Sequence[coco.ImageRecord], sizes: Sequence[int], *, seed: int, shard_bytes: int) -> list[list[coco.ImageRecord]]:
    """Images in a seeded order, cut where the next one would take a shard over `shard_bytes`. Every image once; no shard is empty."""
    cuts: list[list[coco.ImageRecord]] = []
    filled = 0
    for place in np.random.default_rng(seed).permutation(len(images)):
        if not cuts or filled + sizes[place] > shard_bytes:
            cuts.append([])
            filled = 0
        cuts[-1].append(images[place])
        filled += sizes[place]
    return cuts


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def find_finished(output: str, fingerprint: str, *, overwrite: bool) -> shards.ShardSet | None:
    """The set that a former run finished at `output` from the same source with the same options."""
    if overwrite or not storage.exists(storage.join(output, shards.INDEX)):
        return None
    if shards.read_index(output).get("fingerprint") != fingerprint:
        raise UsageError(f"--output {output}: holds a shard set of another source or other options; give another folder or say --overwrite true")
    return shards.open_shard_set(output)


def write_shards(plan: Plan, *, say: Callable[[str], None] = print) -> shards.ShardSet:
    """Carry a plan out on the connected Ray cluster and publish the index last. `DataError` when too much had to be left out."""
    if plan.finished is not None:
        say(f"{plan.output}: the shard set is already there and fits source and options; reused")
        return plan.finished
    storage.delete_file(storage.join(plan.output, shards.INDEX))
    found = {job.name: report for job in plan.jobs if (report := find_report(job)) is not None}
    if found:
        say(f"{plan.output}: {len(found)} of {len(plan.jobs)} shards are there from a run that did not finish; reused")
    reports = found | run_jobs([job for job in plan.jobs if job.name not in found], total=len(plan.jobs), say=say)
    in_order = [reports[job.name] for job in plan.jobs]
    quarantined = [*plan.quarantined, *(record for report in in_order for record in report.quarantined)]
    left_out = check_share(plan, quarantined)
    shards.write_quarantine(plan.output, [asdict(record) for record in quarantined])

    kept = [report.shard for report in in_order if report.shard is not None]
    remove_strays(plan.output, {shard.name for shard in kept})
    counts = sum((Counter(report.counts) for report in in_order), Counter())
    repairs = sum((Counter(report.repairs) for report in in_order), Counter(plan.source.repairs))
    totals = {name: counts[name] for name in ("images", "boxes", "crowds", "empty_images")}
    result = shards.write_index(
        plan.output,
        categories=plan.source.categories,
        shards=kept,
        counts=totals | {"quarantined": len(quarantined), "quarantined_images": left_out},
        source_digest=plan.source.digest,
        fingerprint=plan.fingerprint,
        repairs=dict(sorted(repairs.items())),
    )
    storage.delete_folder(storage.join(plan.output, PROGRESS))
    return result


def check_share(plan: Plan, quarantined: Sequence[coco.Quarantined]) -> int:
    """The number of images left out. Above the limit the quarantine is written for reading and a `DataError` gives the top reasons."""
    images = [record for record in quarantined if record.what == "image"]
    listed = plan.source.listed
    if len(images) <= plan.max_quarantined * listed and len(images) < listed:
        return len(images)
    shards.write_quarantine(plan.output, [asdict(record) for record in quarantined])
    top = "; ".join(f"{times} x {why}, such as {where}" for why, times, where in top_reasons(images)[:3])
    rule = f"--max_quarantined {plan.max_quarantined:g} allows {int(plan.max_quarantined * listed)}" if len(images) < listed else "none is left"
    remedy = f"see {storage.join(plan.output, shards.QUARANTINE)}, check --images and mend the data"
    raise DataError(f"{len(images)} of {listed} images had to be left out, {rule}: {top}; {remedy}")


def top_reasons(records: Sequence[coco.Quarantined]) -> list[tuple[str, int, str]]:
    """(why, how many, the first one's name), the most frequent first. Details in brackets are not told apart."""
    whys: dict[str, list[str]] = {}
    for record in records:
        whys.setdefault(re.sub(r"\s*[(<].*?[)>]", "", record.why), []).append(record.where)
    return sorted(((why, len(names), names[0]) for why, names in whys.items()), key=lambda entry: (-entry[1], entry[0]))


def remove_strays(output: str, names: set[str]) -> None:
    """Shards of a former run that cut the source differently. Nothing else in the folder is touched."""
    for uri, _ in storage.list_files(output):
        name = uri[len(output) + 1 :]
        if re.fullmatch(r"shard-\d{5,}-of-\d{5,}\.parquet", name) and name not in names:
            storage.delete_file(uri)


def report_uri(job: ShardJob) -> str:
    return storage.join(job.output, PROGRESS, f"{job.name}.json")


def find_report(job: ShardJob) -> ShardReport | None:
    """What a former run noted about this shard, if it came from the same input and the shard is there in full."""
    try:
        note = storage.read_json(report_uri(job))
        if note["fingerprint"] != job.fingerprint:
            return None
        shard = shards.Shard.of(note["shard"]) if note["shard"] else None
        quarantined = tuple(coco.Quarantined(**record) for record in note["quarantined"])
    except (FileNotFoundError, DataError, KeyError, TypeError):
        return None
    if shard is not None:
        filesystem, path = storage.resolve(storage.join(job.output, shard.name))
        if filesystem.get_file_info(path).size != shard.bytes:
            return None
    return ShardReport(shard, note["counts"], note["repairs"], quarantined)


def run_jobs(jobs: Sequence[ShardJob], *, total: int, say: Callable[[str], None]) -> dict[str, ShardReport]:
    """One Ray task a shard, a bounded number at a time: a task holds its shard in memory."""
    import ray

    if not jobs:
        return {}
    # Decoding keeps a core busy. A smaller share would start more workers, at seconds of imports each, for no more speed.
    task = ray.remote(num_cpus=1)(run_job)
    in_flight = int(ray.cluster_resources().get("CPU", 1)) + 1
    waiting = list(reversed(jobs))
    running: dict[Any, str] = {}
    reports: dict[str, ShardReport] = {}
    try:
        while waiting or running:
            while waiting and len(running) < in_flight:
                job = waiting.pop()
                running[task.remote(job)] = job.name
            (done,), _ = ray.wait(list(running), num_returns=1)
            reports[running.pop(done)] = ray.get(done)
            finished = total - len(jobs) + len(reports)
            # About twenty lines however many shards there are.
            if finished == total or finished * 20 // total > (finished - 1) * 20 // total:
                say(f"{finished} of {total} shards")
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PlainError):
            # The cause alone: Ray's own text is the traceback of the worker.
            raise error.cause from None
        raise PlainError(f"preparing a shard failed: {error.cause!r}; run the command again, finished shards are kept") from error
    finally:
        for reference in running:
            ray.cancel(reference)
    return reports


def run_job(job: ShardJob) -> ShardReport:
    """Read, check and store the images of one shard; the note about it is written when the shard is."""
    with ThreadPoolExecutor(storage.TRANSFER_THREADS) as pool:
        results = list(pool.map(lambda image: ingest_image(image, job.images_uri), job.images))
    rows = [row for row, _, _ in results if row is not None]
    shard = shards.write_shard(job.output, job.name, rows, row_group_rows=job.row_group_rows) if rows else None
    counts = {
        "images": len(rows),
        "boxes": sum(len(row.labels_N) for row in rows),
        "crowds": sum(sum(row.crowd_N) for row in rows),
        "empty_images": sum(not row.labels_N for row in rows),
    }
    repairs = sum((repaired for _, _, repaired in results), Counter())
    report = ShardReport(shard, counts, dict(repairs), tuple(record for _, records, _ in results for record in records))
    note = {"fingerprint": job.fingerprint, **asdict(report), "shard": shard._asdict() if shard else None}
    storage.write_json(report_uri(job), note)
    return report
