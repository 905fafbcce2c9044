"""A plan -> Ray Data -> decoded, augmented, batched, on one rank.

Ray Data moves encoded bytes (six to nine times smaller than pixels) in the order of the plan; decoding and augmentation run in threads beside the
trainer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from cluster import plan
from cluster.rows import read_planned
from cluster.shards import ShardSet, read_columns
from detector.augment import evaluation_sample, mix, preferred_canvas, training_sample
from detector.batch import Batch, Sample, collate, collate_by_canvas
from detector.image import open_image

MIXING = ("mosaic", "mixup")
"""What is done to a batch and not to one picture."""


@dataclass(frozen=True)
class Stream:
    """The training batches of one rank. Augmentation of an image depends on (seed, epoch, image id) alone; mosaic and mixup also on its batch."""

    shard_set: ShardSet
    rank: int
    ranks: int
    batch: int
    """Images of this rank's batches; the global batch is `ranks` times that."""
    canvases: Sequence[tuple[int, int]]
    """(height, width) px. A batch has one of them, the one that most of its images prefer."""
    seed: int
    augmentation: dict[str, Any] = field(default_factory=dict)
    """Keywords of `detector.augment.training_sample`, and `mosaic` and `mixup` of `detector.augment.mix`."""
    threads: int = 1
    window: int = 4

    def epoch(self, epoch: int, left: plan.Intervals) -> Iterator[Batch]:
        """`plan.steps(left, ...)` batches, the same number on every rank; a shorter share ends with fillers (image id -1), which carry no loss."""
        stored = plan.epoch_sequence(self.shard_set.rows_per_group, seed=self.seed, epoch=epoch, window=self.window)
        arranged = plan.arrange(stored, self.preferred, run=self.ranks * self.batch)
        rows = plan.rows_of(arranged, plan.cut(left, rank=self.rank, ranks=self.ranks, batch=self.batch))
        canvases = [self.canvases[number] for number in plan.batch_canvases(rows, self.preferred, batch=self.batch)]
        wanted = plan.steps(left, ranks=self.ranks, batch=self.batch) * self.batch

        def samples() -> Iterator[Sample]:
            last: Sample | None = None
            count = 0
            read = ((content, canvases[i // self.batch]) for i, content in enumerate(read_arranged(self.shard_set, stored, rows)))
            for last in ordered_map(lambda item: self.sample(*item, epoch=epoch), read, threads=self.threads):
                count += 1
                yield last
            filler = replace(last, image_id=-1) if last is not None else blank(self.canvases)
            for _ in range(wanted - count):
                yield filler

        yield from ahead((self.batch_of(chunk, epoch) for chunk in chunks(samples(), self.batch)), depth=2)

    @cached_property
    def preferred(self) -> list[list[int]]:
        """The number of the canvas that each row group's rows prefer. Heights and widths are read once, and only where there is a choice."""
        counts = self.shard_set.rows_per_group
        if len(self.canvases) == 1:
            return [[0] * count for count in counts]
        sizes = read_columns(self.shard_set, ["height", "width"])
        pairs = zip(sizes["height"].to_pylist(), sizes["width"].to_pylist(), strict=True)
        numbers = iter([preferred_canvas(height, width, self.canvases) for height, width in pairs])
        return [list(islice(numbers, count)) for count in counts]

    def sample(self, row: dict[str, Any], canvas: tuple[int, int], *, epoch: int) -> Sample:
        boxes, labels = row_boxes(row)
        crowd = np.asarray(row["crowd"], dtype=bool)
        return training_sample(
            open_image(row["image"]),
            boxes,
            np.where(crowd, -1, labels),
            row["image_id"],
            canvas=canvas,
            generator=self.generator(row["image_id"], epoch),
            **{name: value for name, value in self.augmentation.items() if name not in MIXING},
        )

    def batch_of(self, samples: list[Sample], epoch: int) -> Batch:
        if any(self.augmentation.get(name) for name in MIXING):
            settings = {name: value for name, value in self.augmentation.items() if name in (*MIXING, "min_visible")}
            samples = mix(samples, generators=[self.generator(sample.image_id, epoch) for sample in samples], **settings)
        return collate(samples, classes=len(self.shard_set.categories))

    def generator(self, image_id: int, epoch: int) -> np.random.Generator:
        # A filler's id is -1, and seeds must not be negative.
        return np.random.default_rng((self.seed, epoch, image_id % 2**63))


def evaluation_batches(
    shard_set: ShardSet, *, rank: int, ranks: int, batch: int, canvases: Sequence[tuple[int, int]], threads: int = 1
) -> Iterator[tuple[Batch, list[tuple[int, int]]]]:
    """This rank's share of every row exactly once, with the original (height, width) px of each image.

    Batches hold the images of one preferred canvas, in stored order; the last one of each canvas is short.
    """
    sequence = plan.epoch_sequence(shard_set.rows_per_group, seed=0, epoch=0, window=0)
    rows = plan.rows_of(sequence, plan.cut([(0, len(sequence))], rank=rank, ranks=ranks))

    def load(row: dict[str, Any]) -> tuple[Sample, tuple[int, int]]:
        image = open_image(row["image"])
        return evaluation_sample(image, row["image_id"], canvases=canvases), image.shape[:2]

    pairs = ordered_map(load, read_planned(shard_set, plan.units(rows)), threads=threads)
    yield from ahead(collate_by_canvas(pairs, batch), depth=2)


def read_arranged(shard_set: ShardSet, stored: Sequence[plan.Row], rows: Sequence[plan.Row]) -> Iterator[dict[str, Any]]:
    """The content of `rows` in their order, read in the order of `stored`, in which the rows of a row group are near each other.

    Reading in the arranged order would fetch row groups again for every run: those of a seldom canvas come from all over. What is read before its
    turn waits here, encoded: less than one run a canvas.
    """
    chosen = set(rows)
    reading = [row for row in stored if row in chosen]
    yield from in_order(rows, zip(reading, read_planned(shard_set, plan.units(reading)), strict=True))


def in_order(keys: Iterable[Any], arriving: Iterator[tuple[Any, Any]]) -> Iterator[Any]:
    """The values of these keys, from (key, value) pairs of the same keys that arrive in another order."""
    waiting: dict[Any, Any] = {}
    for key in keys:
        while key not in waiting:
            found, value = next(arriving)
            waiting[found] = value
        yield waiting.pop(key)
    # Read to its end, so that whoever sends them closes what he has open.
    for found, _ in arriving:
        raise ValueError(f"{found}: arrived and was not asked for")


def row_boxes(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(row["boxes"], np.float32).reshape(-1, 4), np.asarray(row["labels"], np.int64)


def blank(canvases: Sequence[tuple[int, int]]) -> Sample:
    """The filler of a rank that got no row at all."""
    return evaluation_sample(np.zeros((*canvases[0], 3), np.uint8), -1, canvases=canvases)


def ordered_map(function: Callable[[Any], Any], items: Iterator[Any], *, threads: int) -> Iterator[Any]:
    """`map` on a few threads, in order, with at most four items a thread under way."""
    with ThreadPoolExecutor(threads) as pool:
        pending = []
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * threads:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def ahead(items: Iterator[Any], *, depth: int) -> Iterator[Any]:
    """The same items, made by a thread that stays up to `depth` ahead. An error in the thread is raised here; leaving early stops the thread."""
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[Any, BaseException | None, bool]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None, False))
                if stopped.is_set():
                    return
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    thread = threading.Thread(target=work, daemon=True, name="stream")
    thread.start()
    try:
        while True:
            item, error, last = ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield item
    finally:
        stopped.set()
        thread.join(timeout=10)
