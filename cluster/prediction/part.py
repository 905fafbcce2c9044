"""The work on one part: read its images, decode them in threads ahead of the network, and write its
results once. It is the same to the last bit for any number of workers, because batches are made of
the images of one part.

    parts/part-000000.parquet   a row for each image of the part, in order: `schema_of`
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import UsageError
from cluster.loading.prefetch import WHOLE_BATCHES_AHEAD, Ahead, ordered_map
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
    lowest_scores: tuple[float, ...] | None = None
    """That the detections of each class must reach, by label; None: all that the network gives."""
    isolated: bool = False
    """Each image is decoded in a child process first: a worker died at this part twice."""


@dataclass(frozen=True)
class PartReport:
    number: int
    ok: int
    failed: int
    seconds: float
    """Wall time from its turn at the network until its file is written."""


@dataclass(frozen=True)
class Found:
    """The detections of an image of this size, px."""

    detections: Detections
    height: int
    width: int


_NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


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
    job: PartJob,
    predictor: Predictor,
    class_names: list[str],
    *,
    threads: int = 1,
    network: AbstractContextManager[object] | None = None,
) -> PartReport:
    """Detect in the images of a part and write its rows, exactly one for each. `threads`
    decode, with four images for each of them in memory, and the next batches. `network` is a lock
    of parts that share a predictor: a part that waits for it reads and decodes meanwhile.
    `PlainError` where the storage fails: then nothing is written.
    """
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
        batches = stack.enter_context(
            Ahead(predictor.batches(samples(trial)), depth=WHOLE_BATCHES_AHEAD)
        )
        with network or nullcontext():
            start = time.perf_counter()
            detections = predictor.detect_batches(batches, job.views)
    _check_seen(listed, faults)
    lowest = None if job.lowest_scores is None else np.array(job.lowest_scores)

    def kept(found: Detections) -> Detections:
        return found if lowest is None else found.reaching(lowest)

    rows = [
        faults[number] if number in faults else Found(kept(detections[number]), *sizes[number])
        for number in range(listed.num_rows)
    ]
    table = _joined(listed, _scored(rows, class_names, job.model_version), job)
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


def _scored(rows: list[Found | Fault], class_names: list[str], model_version: str) -> pa.Table:
    """The rows as columns, `SCORED`. For 1,024 images of 100 detections this takes 4 ms; through
    lists of Python's numbers it took 290 ms, in which the network's thread had to wait.
    """
    found = [row if isinstance(row, Found) else None for row in rows]
    faults = [row if isinstance(row, Fault) else None for row in rows]
    detections = [_NOTHING if row is None else row.detections for row in found]
    ends = np.cumsum([0, *(len(one.labels_N) for one in detections)]).astype(np.int32)
    boxes = np.concatenate([one.boxes_N4 for one in detections]).astype(np.float32)
    labels = pa.array(np.concatenate([one.labels_N for one in detections]).astype(np.int32))
    scores = pa.array(np.concatenate([one.scores_N for one in detections]).astype(np.float32))
    box_of = pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4)
    names = pa.array(class_names, pa.string()).take(labels)
    columns: dict[str, Any] = {
        "status": ["ok" if fault is None else "error" for fault in faults],
        "reason": [fault and fault.reason for fault in faults],
        "error": [fault and fault.sentence for fault in faults],
        "height": [row and row.height for row in found],
        "width": [row and row.width for row in found],
        "model_version": [model_version] * len(rows),
    }
    for name, values in (("boxes", box_of), ("scores", scores), ("labels", labels)):
        columns[name] = pa.ListArray.from_arrays(ends, values)
    columns["names"] = pa.ListArray.from_arrays(ends, names)
    return pa.table({field.name: columns[field.name] for field in SCORED}, schema=SCORED)


def _joined(listed: pa.Table, scored: pa.Table, job: PartJob) -> pa.Table:
    schema = schema_of(carried_of(listed.schema))
    columns = [(scored if name in SCORED.names else listed)[name] for name in schema.names]
    origin = made_of(job.claim_digest, plans.digest_of(listed))
    return pa.table(columns, schema=schema.with_metadata({MADE_OF: origin.encode()}))
