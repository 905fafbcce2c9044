"""A plan -> Ray Data -> decoded, augmented, batched, on one rank.

Ray Data moves encoded bytes (six to nine times smaller than pixels) in the order of the plan. Decoding and augmentation run in threads beside the
trainer, or in tasks of Ray Data where machines without GPUs are there to do it; either way the same pixels come out.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from cluster.loading import epoch_plan as plan
from cluster.loading.datasets import iterate, planned_rows, sampled_rows
from cluster.loading.sampler import Sampler, named
from cluster.shards.format import ShardSet, read_columns
from detector.augment import evaluation_sample, preferred_canvas
from detector.batch import Batch, Sample, collate_by_canvas, empty_canvases
from detector.image import open_image

WHOLE_BATCHES_AHEAD = 2
BEGIN_S = 1.0
"""Seconds before the end of an epoch, at its own pace so far, at which the next one is begun: its first batch takes 0.2 s, and longer where a step
keeps the cores busy."""


@dataclass
class Stream:
    """The training batches of one rank, epoch after epoch.

    Memory, beside the batches: of encoded images `rows.READ_TASKS` + 2 windows of `plan.WINDOW` row groups (16 MiB each where no picture is larger
    than 4 MiB and none is repeated, see `shards.MAX_GROUP_BYTES`) in the object store, of decoded ones `WHOLE_BATCHES_AHEAD` batches and those in
    which the next four images a thread are; twice where two epochs meet. Tasks that decode fill the object store as far as Ray Data lets them.
    """

    shard_set: ShardSet
    rank: int
    batches: Sequence[int]
    """Images of each rank's batch; their sum is the global batch."""
    run: int | None = field(default=None, kw_only=True)
    """Images of a run of `plan.arrangement`, the same over the whole history of an epoch; None: the global batch."""
    canvases: Sequence[tuple[int, int]]
    """(height, width) px. A batch has one of them, the one that most of its images prefer."""
    long_side: int | None = field(default=None, kw_only=True)
    """px that the longer side of a picture must not pass on its canvas."""
    seed: int
    epochs: int = 1
    """Epochs in all: while the last batches of one are used, the first ones of the next are made."""
    augmentation: dict[str, Any] = field(default_factory=dict)
    """See `cluster.loading.sampler.Sampler`."""
    mirror_later: bool = False
    """Leave the flips to `detector.batch.on_device`."""
    threads: int = 1
    decode: Literal["threads", "tasks"] = "threads"
    window: int = plan.WINDOW
    repeat_threshold: float = 0.0
    """Images whose rarest class is in a smaller share of the images than this are repeated, see `plan.repeat_factors`; 0: none."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """How often the images of a source occur, 1 where it is not named."""
    prepared: dict[int, Ahead] = field(default_factory=dict, init=False)
    """Epochs that were begun before they were asked for."""

    def epoch(self, epoch: int, left: plan.Intervals) -> Iterator[Batch]:
        """`plan.steps(left, ...)` batches, the same number on every rank; a shorter share ends with fillers (image id -1), which carry no loss.

        `left` are places of the epoch's sequence, which has `places` of them.
        """
        whole = [(0, self.places)]
        ready = self.prepared.pop(epoch, None) if left == whole else None
        steps = plan.steps(left, batches=self.batches)
        with ready or self.begin(epoch, left) as batches:
            for number, batch in enumerate(batches):
                if number == 0:
                    began = time.monotonic()
                # Of those after the first, which waits for the start.
                batch_s = (time.monotonic() - began) / number if number else math.inf
                ending = steps - 1 - number <= max(WHOLE_BATCHES_AHEAD, BEGIN_S / max(batch_s, 1e-9))
                if ending and epoch + 1 < self.epochs and epoch + 1 not in self.prepared:
                    self.prepared[epoch + 1] = self.begin(epoch + 1, whole)
                yield batch

    def close(self) -> None:
        """Stop the threads of epochs that were prepared and not used."""
        while self.prepared:
            self.prepared.popitem()[1].close()

    def begin(self, epoch: int, left: plan.Intervals) -> Ahead:
        return Ahead(self.produce(epoch, left), depth=WHOLE_BATCHES_AHEAD)

    def produce(self, epoch: int, left: plan.Intervals) -> Generator[Batch]:
        counts, images = self.shard_set.rows_per_group, self.batches[self.rank]
        copies = None if self.shares is None else plan.copies(self.shares, total=self.places, seed=self.seed, epoch=epoch)
        stored = plan.epoch_sequence(counts, seed=self.seed, epoch=epoch, window=self.window, copies_N=copies)
        order = plan.arrangement(self.preferred[stored], run=self.run or sum(self.batches))
        places = order[plan.places_of(plan.cut(left, rank=self.rank, batches=self.batches))]
        canvases = plan.batch_canvases(self.preferred[stored[places]], batch=images)
        # Read in the order of the sequence, in which the rows of a row group are near each other: those of a seldom canvas come from all over. What
        # is read before its turn waits here, encoded: less than one run a canvas.
        reading = np.argsort(places)
        canvas_of_place = np.repeat(canvases, images)[: len(places)]
        sampler = Sampler(self.canvases, self.long_side, len(self.shard_set.categories), self.seed, epoch, self.augmentation, self.mirror_later)
        units = plan.units(stored[places[reading]], counts, window=self.window)
        marks = {"copy": plan.copy_numbers(stored)[places[reading]], "canvas": canvas_of_place[reading]}

        def samples() -> Iterator[tuple[Sample, int, Tensor | None]]:
            if self.decode == "threads":
                arriving, make = iterate(planned_rows(self.shard_set, units, **marks)), sampler.sample
            else:
                arriving, make = iterate(sampled_rows(self.shard_set, units, sampler, **marks)), sampler.received
            in_turn = in_order(range(len(places)), zip(reading.tolist(), arriving, strict=True))

            def draw(placed: tuple[dict[str, Any], Tensor, int]) -> tuple[Sample, int, Tensor]:
                row, batch, place = placed
                return make(row, batch[place]), row["copy"], batch

            yield from ordered_map(draw, self.with_places(in_turn, images), threads=self.threads)

        def padded() -> Iterator[tuple[Sample, int, Tensor | None]]:
            last = blank(self.canvases)
            for last, copy, batch in samples() if len(places) else ():
                yield last, copy, batch
            for _ in range(plan.steps(left, batches=self.batches) * images - len(places)):
                yield replace(last, image_id=-1), 0, None

        for chunk in chunks(padded(), images):
            made, copy, batch = zip(*chunk, strict=True)
            yield sampler.batch(made, copy, batch[0])

    def with_places(self, rows: Iterator[dict[str, Any]], images: int) -> Iterator[tuple[dict[str, Any], Tensor, int]]:
        """Each row with the memory of its batch and its number in it. Pictures are drawn where they are to be: stacking copies took 0.1 ms each."""
        for number, row in enumerate(rows):
            if number % images == 0:
                batch = empty_canvases(images, self.canvases[row["canvas"]])
            yield row, batch, number % images

    @cached_property
    def places(self) -> int:
        """Images of an epoch, copies counted; the same in every epoch, so that images seen tell the epoch."""
        return self.shard_set.num_rows if self.shares is None else max(1, round(float(self.shares.sum())))

    @cached_property
    def shares(self) -> np.ndarray | None:
        """float64 (N,): how often each row should occur in an epoch; None: each once."""
        if not self.repeat_threshold and not self.source_weights:
            return None
        shares = np.ones(self.shard_set.num_rows)
        if self.source_weights:
            weights = np.array([self.source_weights.get(name, 1.0) for name in self.shard_set.source_names])
            shares *= weights[read_columns(self.shard_set, ["source"])["source"].to_numpy()]
        if self.repeat_threshold:
            columns = read_columns(self.shard_set, ["labels", "crowd"])
            pairs = zip(columns["labels"].to_pylist(), columns["crowd"].to_pylist(), strict=True)
            # Crowds are not trained on, so they show nothing of a rare class.
            labels = [[label for label, crowd in zip(*of_image, strict=True) if not crowd] for of_image in pairs]
            shares *= plan.repeat_factors(labels, classes=len(self.shard_set.categories), threshold=self.repeat_threshold)
        return shares

    @cached_property
    def preferred(self) -> np.ndarray:
        return preferred_canvases(self.shard_set, self.canvases, long_side=self.long_side)


def preferred_canvases(shard_set: ShardSet, canvases: Sequence[tuple[int, int]], *, long_side: int | None) -> np.ndarray:
    """int64 (N,): the number of the canvas that each row prefers. Heights and widths are read only where there is a choice."""
    if len(canvases) == 1:
        return np.zeros(shard_set.num_rows, np.int64)
    sizes = read_columns(shard_set, ["height", "width"])
    pairs = zip(sizes["height"].to_pylist(), sizes["width"].to_pylist(), strict=True)
    return np.array([preferred_canvas(height, width, canvases, long_side=long_side) for height, width in pairs], np.int64)


def evaluation_batches(
    shard_set: ShardSet, *, rank: int, ranks: int, batch: int, canvases: Sequence[tuple[int, int]], long_side: int | None = None, threads: int = 1
) -> Iterator[tuple[Batch, list[tuple[int, int]]]]:
    """This rank's share of every row exactly once, with the original (height, width) px of each image.

    Batches hold the images of one preferred canvas, in stored order; the last one of each canvas is short. They are the same for any number of
    ranks: a convolution of 3 images in float32 rounds otherwise than one of 8.
    """
    preferred = preferred_canvases(shard_set, canvases, long_side=long_side)
    share = plan.evaluation_share(preferred, rank=rank, ranks=ranks, batch=batch)
    if not len(share):
        return

    def load(row: dict[str, Any]) -> tuple[Sample, tuple[int, int]]:
        with named(row):
            image = open_image(row["image"])
            return evaluation_sample(image, row["image_id"], canvases=canvases, long_side=long_side), image.shape[:2]

    rows = iterate(planned_rows(shard_set, plan.units(share, shard_set.rows_per_group)))
    with Ahead(collate_by_canvas(ordered_map(load, rows, threads=threads), batch), depth=WHOLE_BATCHES_AHEAD) as batches:
        yield from batches


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


def blank(canvases: Sequence[tuple[int, int]]) -> Sample:
    """The filler of a rank that got no row at all."""
    return evaluation_sample(np.zeros((*canvases[0], 3), np.uint8), -1, canvases=canvases)


def ordered_map(function: Callable[[Any], Any], items: Iterator[Any], *, threads: int) -> Iterator[Any]:
    """`map` on a few threads, in order, with at most four items a thread under way."""
    with ThreadPoolExecutor(threads, initializer=alone) as pool:
        pending = []
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * threads:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def alone() -> None:
    """Keep torch's operations in this thread to this thread; `torch.set_num_threads` would take the model's threads from it too.

    A team of threads for a resize makes more threads than cores, and OpenMP's then sleep at every barrier instead of spinning: a training step beside
    the stream took 12 % longer by the clock with the same CPU time (2 cores; 30,000 sleeps instead of 500 in 12 steps).
    """
    # The first question settles the number that the limit then replaces; asked later, it would replace the limit.
    torch.get_num_threads()
    threadpool_limits(1, user_api="openmp")


def chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class Ahead:
    """The same items, made by a thread that starts at once and stays up to `depth` ahead. An error in the thread is raised where they are used."""

    def __init__(self, items: Generator[Any], *, depth: int):
        self.items = items
        self.ready: queue.Queue = queue.Queue(maxsize=depth)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True, name="stream")
        self.thread.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread; what it has made is dropped."""
        self.stopped.set()
        self.thread.join(timeout=10)

    def __iter__(self) -> Iterator[Any]:
        while True:
            item, error, last = self.ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield item

    def work(self) -> None:
        alone()
        try:
            for item in self.items:
                self.put((item, None, False))
                if self.stopped.is_set():
                    # Here and not whenever it is collected: what it reads from is to be let go.
                    return self.items.close()
            self.put((None, None, True))
        except BaseException as error:
            self.put((None, error, True))

    def put(self, entry: tuple[Any, BaseException | None, bool]) -> None:
        while not self.stopped.is_set():
            try:
                return self.ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
