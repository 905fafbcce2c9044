"""The work on one shard, without Ray: read, check and store its images, and write a note about the
result beside it, so that a run that ended early can go on.

A job holds its files (a shard's size), their copies as Parquet and one decoded picture at a time:
260 MB above the imports for a shard of 64 MiB, 1.5 GB more for a picture of the 100 Mpx allowed.

.progress/shard-00007-of-00064.parquet.json:

    {"schema_version": 1, "fingerprint": "9c31...",
     "shard": {"name": "shard-00007-of-00064.parquet", "rows": 24, ...},
     "counts": {"images": 24, "boxes": 61, "crowds": 2, "empty_images": 1, "lost": 0},
     "repairs": {"boxes clipped to the picture": 2},
     "quarantined": [{"what": "image", "where": "b.jpg", "why": "the file is empty", "raw": "{}"}],
     "pictures": [[7, 0, "a.jpg", "77a1...", 3]], "drop": []}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from cluster.errors import DataError
from cluster.formats.annotations import ImageRecord
from cluster.prepare.image import MISSING, Outcome, ingest_image, read_picture
from cluster.shards.format import Row, Shard
from cluster.shards.quarantine import Quarantined
from cluster.shards.write import write_shard
from cluster.storage import files, parquet_pictures
from cluster.storage.uris import join

PROGRESS = ".progress"
NOTE_VERSION = 1


@dataclass(frozen=True)
class ShardJob:
    """The input of one job: its images in stored order, the images folder of each source, and the
    folder of the set. Without `output` it looks at the images and writes nothing. Images whose id
    is in `drop` are left out; they are not part of the `fingerprint`.
    """

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
    """A readable image, stored or dropped. `sha256` is that of its file, in hex; `annotations`
    counts those that are lost when it is dropped.
    """

    image_id: int
    source: int
    file_name: str
    sha256: str
    annotations: int


@dataclass(frozen=True)
class ShardCounts:
    """Stored images and boxes, crowds among the boxes, images without objects, and annotations lost
    with their image.
    """

    images: int
    boxes: int
    crowds: int
    empty_images: int
    lost: int


@dataclass(frozen=True)
class ShardReport:
    """The result of one job. `shard` is None when none of its images could be used, or nothing was
    to be written.
    """

    shard: Shard | None
    counts: ShardCounts
    repairs: dict[str, int]
    quarantined: tuple[Quarantined, ...]
    pictures: tuple[Picture, ...]
    drop: tuple[int, ...]


@dataclass(frozen=True)
class ShardNote:
    """The report of a finished job, for the next run. `fingerprint` identifies the input of the
    job.
    """

    fingerprint: str
    report: ShardReport

    def to_json(self) -> dict[str, Any]:
        report = self.report
        return {
            "schema_version": NOTE_VERSION,
            "fingerprint": self.fingerprint,
            "shard": report.shard.to_json() if report.shard is not None else None,
            "counts": asdict(report.counts),
            "repairs": report.repairs,
            "quarantined": [asdict(entry) for entry in report.quarantined],
            "pictures": [list(picture) for picture in report.pictures],
            "drop": list(report.drop),
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> ShardNote:
        """`KeyError`, `TypeError` or `ValueError` where the content is not a note that this version
        knows.
        """
        # Notes of the first version have no number.
        if content.get("schema_version", 1) > NOTE_VERSION:
            raise ValueError(f"schema version {content['schema_version']}")
        report = ShardReport(
            shard=Shard.from_json(content["shard"]) if content["shard"] else None,
            counts=ShardCounts(**content["counts"]),
            repairs=content["repairs"],
            quarantined=tuple(Quarantined(**entry) for entry in content["quarantined"]),
            pictures=tuple(Picture(*picture) for picture in content["pictures"]),
            drop=tuple(content["drop"]),
        )
        return ShardNote(content["fingerprint"], report)


def run_job(job: ShardJob) -> ShardReport:
    """Read, check and store the images of one shard, then write its note."""
    rows: list[Row] = []
    quarantined: list[Quarantined] = []
    pictures: list[Picture] = []
    repairs: Counter[str] = Counter()
    lost = 0
    for image, (row, rejected, repaired) in _ingest_images(job):
        annotations = len(image.annotations)
        if row is not None:
            sha256 = row.sha256.hex()
            pictures.append(Picture(row.image_id, row.source, row.file_name, sha256, annotations))
        if row is None or row.image_id in job.drop:
            lost += annotations
            quarantined += rejected if row is None else []
            continue
        rows.append(row)
        quarantined += rejected
        repairs += repaired
    counts = ShardCounts(
        images=len(rows),
        boxes=sum(len(row.labels_N) for row in rows),
        crowds=sum(sum(row.crowd_N) for row in rows),
        empty_images=sum(not row.labels_N for row in rows),
        lost=lost,
    )
    shard = None
    if rows and job.output is not None:
        shard = write_shard(job.output, job.name, rows, row_group_rows=job.row_group_rows)
    report = ShardReport(
        shard, counts, dict(+repairs), tuple(quarantined), tuple(pictures), job.drop
    )
    if job.output is not None:
        note = ShardNote(job.fingerprint, report)
        files.write_json(_note_uri(job.output, job.name), note.to_json())
    return report


def _ingest_images(job: ShardJob) -> Iterator[tuple[ImageRecord, Outcome]]:
    """Threads wait for the files; decoding keeps the one core of the job busy and one picture in
    memory. Pictures inside Parquet files are read beforehand, in the order of their rows.
    """
    uris = [join(job.folders[image.source], image.file_name) for image in job.images]
    inside = parquet_pictures.read_pictures(
        [uri for uri in uris if parquet_pictures.split(uri) is not None]
    )

    def read(image: ImageRecord, uri: str) -> bytes | str:
        if uri in inside:
            return inside.pop(uri) or MISSING
        return read_picture(image, job.folders[image.source])

    with ThreadPoolExecutor(files.TRANSFER_THREADS) as pool:
        contents = pool.map(read, job.images, uris)
        for image, data in zip(job.images, contents, strict=True):
            yield (
                image,
                ingest_image(image, data, max_pixels=job.max_pixels, category_ids=job.category_ids),
            )


def _note_uri(output: str, name: str) -> str:
    return join(output, PROGRESS, f"{name}.json")


def noted_shards(output: str) -> set[str]:
    """The names of the shards of which a former run left a note."""
    uris = [uri for uri, _ in files.list_files(join(output, PROGRESS))]
    return {uri.rsplit("/", 1)[-1].removesuffix(".json") for uri in uris}


def find_report(job: ShardJob) -> ShardReport | None:
    """The report that a former run noted about this shard. None when there is no note, the note is
    about another input, or the shard is not there in full.
    """
    if job.output is None:
        return None
    try:
        note = ShardNote.from_json(files.read_json(_note_uri(job.output, job.name)))
    except (FileNotFoundError, DataError, KeyError, TypeError, ValueError):
        return None
    shard = note.report.shard
    if note.fingerprint != job.fingerprint:
        return None
    if shard is not None and files.size(join(job.output, shard.name)) != shard.bytes:
        return None
    return note.report
