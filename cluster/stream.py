"""A plan -> Ray Data -> decoded, augmented, batched, on one rank.

Ray Data moves encoded bytes (six to nine times smaller than pixels) in the order of the plan; decoding and augmentation run in threads beside the
trainer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cluster import plan
from cluster.rows import read_planned
from cluster.shards import ShardSet
from detector.augment import evaluation_sample, mix, training_sample
from detector.batch import Batch, Sample, collate
from detector.image import decode_image

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
    canvas: tuple[int, int]
    seed: int
    augmentation: dict[str, Any] = field(default_factory=dict)
    """Keywords of `detector.augment.training_sample`, and `mosaic` and `mixup` of `detector.augment.mix`."""
    threads: int = 1
    window: int = 4

    def epoch(self, epoch: int, left: plan.Intervals) -> Iterator[Batch]:
        """`plan.steps(left, ...)` batches, the same number on every rank; a shorter share ends with fillers (image id -1), which carry no loss."""
        sequence = plan.epoch_sequence(self.shard_set.rows_per_group, seed=self.seed, epoch=epoch, window=self.window)
        share = plan.cut(left, rank=self.rank, ranks=self.ranks)
        wanted = plan.steps(left, ranks=self.ranks, batch=self.batch) * self.batch

        def samples() -> Iterator[Sample]:
            last: Sample | None = None
            count = 0
            for last in ordered_map(
                lambda row: self.sample(row, epoch), read_planned(self.shard_set, plan.units(sequence, share)), threads=self.threads
            ):
                count += 1
                yield last
            filler = replace(last, image_id=-1) if last is not None else blank(self.canvas)
            for _ in range(wanted - count):
                yield filler

        yield from ahead((self.batch_of(chunk, epoch) for chunk in chunks(samples(), self.batch)), depth=2)

    def sample(self, row: dict[str, Any], epoch: int) -> Sample:
        boxes, labels = row_boxes(row)
        crowd = np.asarray(row["crowd"], dtype=bool)
        return training_sample(
            decode_image(row["image"]),
            boxes,
            np.where(crowd, -1, labels),
            row["image_id"],
            canvas=self.canvas,
            generator=self.generator(row["image_id"], epoch),
            **{name: value for name, value in self.augmentation.items() if name not in MIXING},
        )

    def batch_of(self, samples: list[Sample], epoch: int) -> Batch:
        if any(self.augmentation.get(name) for name in MIXING):
            settings = {name: value for name, value in self.augmentation.items() if name in (*MIXING, "min_visible")}
            samples = mix(samples, generators=[self.generator(sample.image_id, epoch) for sample in samples], **settings)
        return collate(samples, classes=len(self.shard_set.categories))

    def generator(self, image_id: int, epoch: int) -> np.random.Generator:
        # Seeds must not be negative, image ids may be.
        return np.random.default_rng((self.seed, epoch, image_id % 2**63))


def evaluation_batches(
    shard_set: ShardSet, *, rank: int, ranks: int, batch: int, canvas: tuple[int, int], threads: int = 1
) -> Iterator[tuple[Batch, list[tuple[int, int]]]]:
    """This rank's share of every row exactly once, in stored order, with the original (height, width) px of each image. The last batch is short."""
    sequence = plan.epoch_sequence(shard_set.rows_per_group, seed=0, epoch=0, window=0)
    share = plan.cut([(0, len(sequence))], rank=rank, ranks=ranks)

    def load(row: dict[str, Any]) -> tuple[Sample, tuple[int, int]]:
        image = decode_image(row["image"])
        return evaluation_sample(image, row["image_id"], canvas=canvas), image.shape[:2]

    pairs = ordered_map(load, read_planned(shard_set, plan.units(sequence, share)), threads=threads)
    yield from ahead(((collate([s for s, _ in chunk]), [size for _, size in chunk]) for chunk in chunks(pairs, batch)), depth=2)


def row_boxes(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(row["boxes"], np.float32).reshape(-1, 4), np.asarray(row["labels"], np.int64)


def blank(canvas: tuple[int, int]) -> Sample:
    """The filler of a rank that got no row at all."""
    return evaluation_sample(np.zeros((*canvas, 3), np.uint8), -1, canvas=canvas)


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
