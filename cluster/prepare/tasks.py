"""The work on one shard, and all of it on Ray: one task a shard, a note beside each finished one,
so that a run that ended early is continued.

A task holds its files (a shard's size), their copies as Parquet and one decoded picture at a time:
260 MB over the imports for a shard of 64 MiB, 1.5 GB more for a picture of the 100 Mpx allowed. The
driver makes a job when a task is free for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from cluster.errors import DataError, PlainError
from cluster.formats.annotations import ImageRecord
from cluster.prepare.image import ingest_image, read_picture
from cluster.shards import write
from cluster.shards.format import Row, Shard
from cluster.shards.quarantine import Quarantined
from cluster.storage import files
from cluster.storage.uris import join

PROGRESS = ".progress"
FINISH_S = 60
"""Seconds that shards in the making are given after one has failed."""


@dataclass(frozen=True)
class ShardJob:
    """What one task needs: its images in stored order, the images folder of each source, and where
    the shard goes; without `output` images are looked at and nothing is written. Images whose id is
    in `drop` are left out; those are no part of the `fingerprint`."""

    name: str
    images: tuple[ImageRecord, ...]
    folders: tuple[str, ...]
    output: str | None
    row_group_rows: int
    max_pixels: int
    category_ids: tuple[int, ...]
    fingerprint: str
    drop: tuple[int, ...] = ()


class Picture(NamedTuple):
    """A readable image, stored or dropped: who it is and the sha256 of its file. `annotations`
    counts what goes with it when it is dropped.
    """

    image_id: int
    source: int
    file_name: str
    sha256: str
    annotations: int


@dataclass(frozen=True)
class ShardReport:
    """What one task did. `shard` is None when none of its images could be used, or none was to be
    written.
    """

    shard: Shard | None
    counts: dict[str, int]
    repairs: dict[str, int]
    quarantined: tuple[Quarantined, ...]
    pictures: tuple[Picture, ...]
    drop: tuple[int, ...]


def run_job(job: ShardJob) -> ShardReport:
    """Read, check and store the images of one shard; the note about it is written when the shard
    is.
    """
    rows: list[Row] = []
    quarantined: list[Quarantined] = []
    pictures: list[Picture] = []
    repairs: Counter[str] = Counter()
    lost = 0
    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        # Reading waits and is done by threads; decoding keeps the one core of the task busy and one
        # picture in memory.
        contents = pool.map(
            lambda image: read_picture(image, job.folders[image.source]), job.images
        )
        for image, data in zip(job.images, contents, strict=True):
            row, left_out, repaired = ingest_image(
                image, data, max_pixels=job.max_pixels, category_ids=job.category_ids
            )
            if row is not None:
                pictures.append(
                    Picture(
                        row.image_id,
                        row.source,
                        row.file_name,
                        row.sha256.hex(),
                        len(image.annotations),
                    )
                )
            if row is None or row.image_id in job.drop:
                lost += len(image.annotations)
                quarantined += left_out if row is None else []
                continue
            rows.append(row)
            quarantined += left_out
            repairs += repaired
    counts = {
        "images": len(rows),
        "boxes": sum(len(row.labels_N) for row in rows),
        "crowds": sum(sum(row.crowd_N) for row in rows),
        "empty_images": sum(not row.labels_N for row in rows),
        "lost": lost,
    }
    shard = None
    if rows and job.output is not None:
        shard = write.write_shard(job.output, job.name, rows, row_group_rows=job.row_group_rows)
    report = ShardReport(
        shard, counts, dict(+repairs), tuple(quarantined), tuple(pictures), job.drop
    )
    if job.output is not None:
        note = {
            "fingerprint": job.fingerprint,
            **asdict(report),
            "shard": shard.to_json() if shard else None,
        }
        files.write_json(report_uri(job.output, job.name), note)
    return report


def report_uri(output: str, name: str) -> str:
    return join(output, PROGRESS, f"{name}.json")


def find_report(job: ShardJob) -> ShardReport | None:
    """What a former run noted about this shard, if it came from the same input and the shard is
    there in full.
    """
    if job.output is None:
        return None
    try:
        note = files.read_json(report_uri(job.output, job.name))
        if note["fingerprint"] != job.fingerprint:
            return None
        shard = Shard.from_json(note["shard"]) if note["shard"] else None
        quarantined = tuple(Quarantined(**record) for record in note["quarantined"])
        pictures = tuple(Picture(*picture) for picture in note["pictures"])
        report = ShardReport(
            shard, note["counts"], note["repairs"], quarantined, pictures, tuple(note["drop"])
        )
    except (FileNotFoundError, DataError, KeyError, TypeError):
        return None
    if shard is not None and files.size(join(job.output, shard.name)) != shard.bytes:
        return None
    return report


def run_jobs(
    make_job: Callable[[int], ShardJob],
    numbers: Sequence[int],
    *,
    total: int,
    say: Callable[[str], None],
) -> dict[int, ShardReport]:
    """Jobs by their `numbers`, as many tasks at a time as there are CPUs, and one waiting. `total`
    is for the lines of progress.
    """
    import ray

    if not numbers:
        return {}
    # Decoding keeps a core busy. A smaller share would start more workers, at seconds of imports
    # each, for no more speed.
    task = ray.remote(num_cpus=1)(run_job)
    waiting = list(reversed(numbers))
    running: dict[Any, int] = {}
    reports: dict[int, ShardReport] = {}
    try:
        while waiting or running:
            # Asked again each time: nodes come and go.
            in_flight = int(ray.cluster_resources().get("CPU", 1)) + 1
            while waiting and len(running) < in_flight:
                number = waiting.pop()
                running[task.remote(make_job(number))] = number
            (done,), _ = ray.wait(list(running), num_returns=1)
            reports[running.pop(done)] = ray.get(done)
            finished = total - len(numbers) + len(reports)
            # About twenty lines however many shards there are.
            if finished == total or finished * 20 // total > (finished - 1) * 20 // total:
                say(f"{finished} of {total} shards")
    except ray.exceptions.RayTaskError as error:
        # Waited for, so that they are kept and nothing is written after the error. Not cancelled:
        # in Ray 2.60 `ray.cancel` of a task that is just beginning can end the driver ("Check
        # failed: Tried to complete task that was not pending", seen in one of our test runs).
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=FINISH_S)
        if isinstance(error.cause, PlainError):
            # The cause alone: Ray's own text is the traceback of the worker.
            raise error.cause from None
        raise PlainError(
            f"preparing a shard failed: {error.cause!r}; run the command again, finished shards are"
            " kept"
        ) from error
    except ray.exceptions.RayError as error:
        # A process that was killed, mostly for its memory, or a node that is gone: Ray has tried
        # again before.
        why = str(error).strip().splitlines()[0]
        raise PlainError(
            f"preparing a shard failed ({type(error).__name__}: {why}); run the command again,"
            " finished shards are kept"
        ) from error
    return reports


def run_or_find(
    make_job: Callable[[int], ShardJob],
    *,
    total: int,
    output: str | None,
    say: Callable[[str], None],
) -> list[ShardReport]:
    """The reports of shards 0..total-1, those of a former run where they fit."""
    noted = (
        {uri.rsplit("/", 1)[-1] for uri, _ in files.list_files(join(output, PROGRESS))}
        if output is not None
        else set()
    )
    found: dict[int, ShardReport] = {}
    for number in range(total if noted else 0):
        job = make_job(number)
        if f"{job.name}.json" in noted and (report := find_report(job)) is not None:
            found[number] = report
    if found:
        say(
            f"{output}: {len(found)} of {total} shards are there from a run that did not finish;"
            " reused"
        )
    reports = found | run_jobs(
        make_job, [number for number in range(total) if number not in found], total=total, say=say
    )
    return [reports[number] for number in range(total)]


def drop_images(
    make_job: Callable[[int], ShardJob],
    reports: Sequence[ShardReport],
    drop: set[int],
    *,
    say: Callable[[str], None],
) -> list[ShardReport]:
    """The same reports where exactly the images of the ids in `drop` are left out: shards that hold
    one, or lack another, are written again.
    """
    wanted = [
        tuple(sorted(drop & {picture.image_id for picture in report.pictures}))
        for report in reports
    ]
    wrong = [number for number, report in enumerate(reports) if report.drop != wanted[number]]
    if wrong:
        say(f"{len(wrong)} of {len(reports)} shards are written again, for duplicates")
    again = run_jobs(
        lambda number: replace(make_job(number), drop=wanted[number]),
        wrong,
        total=len(wrong),
        say=say,
    )
    return [again.get(number, report) for number, report in enumerate(reports)]
