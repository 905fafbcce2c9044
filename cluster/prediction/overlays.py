"""Pictures with their detections, drawn from the finished parts:

overlays/0012-name.png   of the image that is the 12th, from 0, of those with status ok
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.prediction import plan as plans
from cluster.prediction.part import PARTS, PartReport
from cluster.storage import files, parquet_pictures
from cluster.storage.parquet_tables import read_table
from cluster.storage.pictures import OVERLAYS
from cluster.storage.uris import join
from detector.decode import Detections
from detector.image import MAX_PIXELS, decode_image
from detector.plots import overlay_figure

NAME_BYTES = 200
NOT_DRAWN = 100
"""Overlays that failed, in the summary."""


@dataclass(frozen=True)
class OverlayJob:
    """The overlays of one part."""

    output: str
    number: int
    first: int
    """Number of the first overlay."""
    count: int
    """Of images with status ok, from the first one on."""
    class_names: Sequence[str]


@dataclass(frozen=True)
class DrawnPart(PartReport):
    """`ok` overlays are there, `failed` are not."""

    lost: tuple[str, ...]
    """What cannot be drawn, as "<uri>: <reason>"."""


def first_overlays(jobs: Iterable[OverlayJob], most: int | None) -> Iterator[OverlayJob]:
    """The jobs for the first `most` overlays, or for all for None; `jobs` are in order."""
    for job in jobs:
        count = job.count if most is None else min(job.count, most - job.first)
        if count > 0:
            yield replace(job, count=count)


def draw_part(job: OverlayJob) -> DrawnPart:
    """Draw what is not drawn yet."""
    start, lost = time.perf_counter(), list[str]()
    part = read_table(files.read_bytes(join(job.output, PARTS, plans.name_of(job.number))))
    ok = [row for row in part.to_pylist() if row["status"] == "ok"]
    for number, row in enumerate(ok[: job.count], job.first):
        name = os.path.basename(row["uri"])
        uri = join(job.output, OVERLAYS, f"{number:04d}-{short_name(name)}.png")
        try:
            if not files.exists(uri):
                files.write_bytes(uri, _drawn(row, job.class_names, title=name))
        except Exception as error:  # a picture is not worth the results
            lost.append(f"{row['uri']}: {type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    return DrawnPart(job.number, job.count - len(lost), len(lost), seconds, tuple(lost))


def _drawn(row: Mapping[str, Any], class_names: Sequence[str], *, title: str) -> bytes:
    """A PNG."""
    figure = overlay_figure(
        decode_image(
            parquet_pictures.read_picture(row["uri"]),
            # What was scored with a higher --max_pixels is drawn too.
            max_pixels=max(MAX_PIXELS, row["height"] * row["width"]),
        ),
        Detections(
            np.asarray(row["boxes"], np.float32).reshape(-1, 4),
            np.asarray(row["scores"], np.float32),
            np.asarray(row["labels"], np.int64),
        ),
        class_names,
        title=title,
    )
    with tempfile.TemporaryFile() as file:
        figure.savefig(file, dpi=90, format="png")
        file.seek(0)
        return file.read()


def short_name(name: str) -> str:
    """A file name that leaves room for a number and a suffix: file systems take 255 bytes."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")
