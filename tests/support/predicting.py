"""Predictions for tests: without Ray, with a detector that needs no network."""

from __future__ import annotations

import io
import json
import os
import queue
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from cluster.prediction import overlays, part, pool
from cluster.storage import files
from detector.batch import Batch
from detector.decode import DecodeSettings, Detections
from detector.merge import PictureMerger
from detector.predict import Predictor, rescale


class Reds(Predictor):
    """Detects the red area."""

    def __init__(self) -> None:
        super().__init__(None, canvases=[(96, 128), (128, 96)], decode={}, amp=False, batch_size=3)

    device = torch.device("cpu")

    def merger(self) -> PictureMerger:
        return PictureMerger(DecodeSettings(nms_threshold=0.5, max_detections=100), self.device)

    def detect(
        self, batch: Batch, original_sizes: Sequence[tuple[int, int]], *, flip: bool = False
    ) -> list[Detections]:
        found = []
        for image, size, original in zip(
            batch.images.int(), batch.sizes_B2.tolist(), original_sizes, strict=True
        ):
            ys, xs = np.nonzero((image[0] - image[2] > 60).numpy())
            boxes = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]] if len(xs) else []
            count = len(boxes)
            box = np.array(boxes, np.float32).reshape(-1, 4)
            detections = Detections(box, np.ones(count, np.float32), np.zeros(count, np.int64))
            found.append(rescale(detections, tuple(size), original))
        return found


def red_picture(number: int = 0, *, kind: str = "PNG") -> bytes:
    """Blue, with a red rectangle whose left border is at 2 * `number` px (up to 60)."""
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[..., 2] = 200
    pixels[20:60, 2 * (number % 30) : 100] = (255, 0, 0)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


class Kill(BaseException):
    """Stands for SIGKILL: no part of the program handles it."""


class Feed:
    """Parts 0..`count`-1 of 10 images; each second question comes too early."""

    def __init__(self, count: int):
        self.parts, self.asked = list(range(count)), 0

    def next_part(self) -> tuple[int, int] | None:
        self.asked += 1
        if self.asked % 2:
            raise queue.Empty
        return (self.parts.pop(0), 10) if self.parts else None


class InProcess:
    """In place of `pool.run_parts`: the parts one after another in this process."""

    def __init__(self, predictor: Predictor | None = None, names: Sequence[str] = ("cell", "x")):
        self.predictor, self.names = predictor or Reds(), list(names)
        self.parts: list[int] = []
        """Numbers of the parts that were done."""
        self.before: Callable[[int], None] = lambda number: None
        """Called with the number of each part that is about to be done."""

    def __call__(
        self, workers: Any, feed: pool.Feed, job: part.PartJob, *, done: pool.Done, look: Any
    ) -> Iterator[part.PartReport]:
        while True:
            try:
                planned = feed.next_part()
            except queue.Empty:
                continue
            if planned is None:
                return
            if not done(*planned):
                self.before(planned[0])
                mine = replace(job, number=planned[0])
                yield part.predict_part(mine, self.predictor, self.names)
                self.parts.append(planned[0])
                look(pool.Crew(1, 0))

    def draw(
        self, jobs: Iterable[overlays.OverlayJob], *, number: int, cpus: float, look: Any
    ) -> Iterator[overlays.DrawnPart]:
        """In place of `pool.draw_overlays`."""
        for job in jobs:
            look()
            yield overlays.draw_part(job)


def write_package(folder: Path) -> Path:
    """What the driver reads of a package; `InProcess` needs no weights."""
    folder.mkdir()
    classes = [{"label": 0, "id": 7, "name": "cell"}, {"label": 1, "id": 9, "name": "x"}]
    (folder / "classes.json").write_text(json.dumps(classes))
    (folder / "model.json").write_text('{"decode": {"score_threshold": 0.05}}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def rows_of(output: str) -> list[dict[str, Any]]:
    """Of predictions.parquet."""
    with files.open_input(f"{output}/predictions.parquet") as file:
        return pq.read_table(file).to_pylist()


def write_pictures(folder: Path | str, count: int) -> list[str]:
    """Names 000.png ..., in a folder or bucket."""
    names = [f"{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        files.write_bytes(f"{folder}/{name}", red_picture(number))
    return names


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; the summary without what a clock says and the folder's name."""
    return {
        os.path.relpath(path, folder): _without_times(path, folder)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _without_times(path: Path, folder: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "summary.json":
        summary = json.loads(content)
        del summary["timing"]
        return json.dumps(summary).encode()
    if path.name == "summary.html":
        content = re.sub(rb"<h2>Rate and time</h2>.*?</section>", b"", content, flags=re.DOTALL)
        content = re.sub(rb"<b>[^<]*</b>images/s", b"", content)
        return content.replace(str(folder).encode(), b"")
    return content
