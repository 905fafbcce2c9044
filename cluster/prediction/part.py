"""The work on one part: read its images, decode them a few ahead of the network, and write its
results once. It is the same to the last bit for any number of workers, because batches are made of
the images of one part.

    parts/part-000000.parquet   a row for each image of the part, in order: `schema_of`
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from cluster.errors import UsageError
from cluster.loading.prefetch import ordered_map
from cluster.prediction import plan as plans
from cluster.prediction.read_image import Fault, fault_of, grouped, open_read, read_images
from cluster.prediction.trial_decode import TrialDecoder
from cluster.storage.publish import write_once
from cluster.storage.uris import is_remote, join
from detector.batch import Sample
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.decode import Detections
from detector.image import ImageError
from detector.predict import Predictor
from detector.tiling import View

PARTS = "parts"
Views = list[tuple[Sample, View]]
"""Of one image."""
READ_THREADS = 4
"""They wait for the storage; each has up to four images in memory."""
MADE_OF = b"retinaray.made_of"
"""Key of the metadata of a part, see `made_of`."""
SCORED = pa.schema(
    [
        ("status", pa.string()),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
        ("model_version", pa.string()),
    ]
)
"""What is added to the columns of the list. `status` is ok or error; `reason` is one of
`read_image.Reason` and `error` a sentence, null for ok; `height` and `width` in px of the upright
image; `boxes` XYXY px of it, best score first; `scores` 0..1; `labels` 0..K-1.
"""


@dataclass(frozen=True)
class PartJob:
    """The part of this number of the plan in the folder `output`."""

    output: str
    number: int
    claim_digest: str
    model_version: str
    max_pixels: int
    views: ViewSettings = WHOLE_PICTURE
    """In which views of an image the network detects."""
    isolated: bool = False
    """Each image is decoded in a child process first: a worker died at this part twice."""


@dataclass(frozen=True)
class PartReport:
    number: int
    ok: int
    failed: int
    seconds: float
    """Wall time of the part."""


def made_of(claim_digest: str, part_digest: str) -> str:
    """What the results of a part depend on: the claim and the listed images."""
    return f"{claim_digest}:{part_digest}"


def schema_of(carried: pa.Schema) -> pa.Schema:
    """Of a part and of predictions.parquet; `carried` are the further columns of the list."""
    return pa.schema([("uri", pa.string()), *SCORED, ("image_id", pa.int64()), *carried])


def carried_of(listed: pa.Schema) -> pa.Schema:
    """The further columns of a part of the plan."""
    known = ("uri", "image_id", "size", "changed")
    return pa.schema([field for field in listed if field.name not in known])


def predict_part(
    job: PartJob, predictor: Predictor, class_names: list[str], *, threads: int = 1
) -> PartReport:
    """Detect in the images of a part and write its rows, exactly one for each. `threads`
    decode, with four images for each of them in memory. `PlainError` where the storage fails: then
    nothing is written.
    """
    start = time.perf_counter()
    listed = plans.read_part(job.output, job.number)
    faults: dict[int, Fault] = {}
    sizes: dict[int, tuple[int, int]] = {}

    def samples(trial: TrialDecoder | None) -> Iterator[Views]:
        load = partial(_load, predictor=predictor, job=job, trial=trial)
        groups = ordered_map(_read, grouped(listed["uri"].to_pylist()), threads=READ_THREADS)
        read = (item for group in groups for item in group)
        # A child process takes one image at a time.
        images = ordered_map(load, read, threads=1 if trial is not None else threads)
        for number, loaded in enumerate(images):
            if isinstance(loaded, Fault):
                faults[number] = loaded
            else:
                sizes[number] = loaded[0][1].picture
                yield loaded

    with ExitStack() as stack:
        trial = None
        if job.isolated:
            trial = stack.enter_context(TrialDecoder(max_pixels=job.max_pixels))
        detections = predictor.detect_views(samples(trial), job.views)
    _check_seen(listed, faults)
    rows = [
        _failed(faults[number])
        if number in faults
        else _detected(detections[number], sizes[number], class_names)
        for number in range(listed.num_rows)
    ]
    table = _joined(listed, rows, job)
    write_once(join(job.output, PARTS, plans.name_of(job.number)), plans.as_parquet(table))
    ok = listed.num_rows - len(faults)
    return PartReport(job.number, ok, len(faults), time.perf_counter() - start)


def _check_seen(listed: pa.Table, faults: Mapping[int, Fault]) -> None:
    """`UsageError` where the driver saw these files and this worker sees none of them: they lie on
    a disk of the driver's node.
    """
    uris, changed = listed["uri"].to_pylist(), listed["changed"].to_pylist()
    seen = [
        number
        for number in range(listed.num_rows)
        if changed[number] is None
        or is_remote(uris[number])
        # The driver could not read it either.
        or listed["size"][number].as_py() == 0
        or number not in faults
        or faults[number].reason != "missing"
    ]
    if not seen:
        raise UsageError(
            f"{uris[0]} and {len(uris) - 1} more: are not on node {socket.gethostname()}, where a"
            " worker is to read them; --images must name files that all nodes see, or s3://"
        )


def _read(group: list[tuple[int, str]]) -> list[tuple[int, bytes | Fault]]:
    numbers, uris = zip(*group, strict=True)
    return list(zip(numbers, read_images(uris), strict=True))


def _load(
    item: tuple[int, bytes | Fault],
    *,
    predictor: Predictor,
    job: PartJob,
    trial: TrialDecoder | None,
) -> Views | Fault:
    number, data = item
    if isinstance(data, Fault):
        return data
    if trial is not None and (fault := trial.try_image(data)) is not None:
        return fault
    image = open_read(data, max_pixels=job.max_pixels)
    if isinstance(image, Fault):
        return image
    try:
        return predictor.view_samples(image, number, job.views)
    except ImageError as error:
        return fault_of(error)


def _failed(fault: Fault) -> dict[str, Any]:
    return {"status": "error", "reason": fault.reason, "error": fault.sentence, **_NOTHING}


_NOTHING: Mapping[str, Any] = {"boxes": [], "scores": [], "labels": [], "names": []}


def _detected(
    detections: Detections, size: tuple[int, int], class_names: list[str]
) -> dict[str, Any]:
    labels = detections.labels_N.tolist()
    return {
        "status": "ok",
        "height": size[0],
        "width": size[1],
        "boxes": detections.boxes_N4.tolist(),
        "scores": detections.scores_N.tolist(),
        "labels": labels,
        "names": [class_names[label] for label in labels],
    }


def _joined(listed: pa.Table, rows: list[dict[str, Any]], job: PartJob) -> pa.Table:
    scored = pa.Table.from_pylist(
        [{**row, "model_version": job.model_version} for row in rows], schema=SCORED
    )
    schema = schema_of(carried_of(listed.schema))
    columns = [(scored if name in SCORED.names else listed)[name] for name in schema.names]
    origin = made_of(job.claim_digest, plans.digest_of(listed))
    return pa.table(columns, schema=schema.with_metadata({MADE_OF: origin.encode()}))
