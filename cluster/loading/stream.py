"""A plan -> Ray Data -> decoded, augmented, batched, on one rank.

Ray Data moves encoded bytes (six to nine times smaller than pixels) in the order of the plan.
Decoding and augmentation run in threads beside the trainer, or in tasks of Ray Data where machines
without GPUs are there to do it; either way the same pixels come out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from torch import Tensor

from cluster.loading import epoch_plan
from cluster.loading.datasets import iterate, planned_rows, sampled_rows
from cluster.loading.evaluation_batches import preferred_canvases
from cluster.loading.prefetch import WHOLE_BATCHES_AHEAD, Ahead, chunks, in_order, ordered_map
from cluster.loading.sampler import Sampler
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns
from detector.batch import Batch, Sample, empty_canvases
from detector.placement import evaluation_sample

BEGIN_S = 1.0
"""Seconds before the end of an epoch, at its own pace so far, at which the next one is begun: its
first batch takes 0.2 s, and longer where a step keeps the cores busy."""


@dataclass
class Stream:
    """The training batches of one rank, epoch after epoch.

    Memory, beside the batches: of encoded images `datasets.READ_TASKS` + 2 windows of
    `epoch_plan.WINDOW` row groups (16 MiB each where no picture is larger than 4 MiB and none is
    repeated, see `shards.MAX_GROUP_BYTES`) in the object store, of decoded ones
    `WHOLE_BATCHES_AHEAD` batches and those in which the next four images a thread are; twice where
    two epochs meet. Tasks that decode fill the object store as far as Ray Data lets them.
    """

    shard_set: ShardSet
    rank: int
    batches: Sequence[int]
    """Images of each rank's batch; their sum is the global batch."""
    run: int | None = field(default=None, kw_only=True)
    """Images of a run of `epoch_plan.arrangement`, the same over the whole history of an epoch;
    None: the global batch.
    """
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
    window: int = epoch_plan.WINDOW
    repeat_threshold: float = 0.0
    """Images whose rarest class is in a smaller share of the images than this are repeated, see
    `epoch_plan.repeat_factors`; 0: none.
    """
    source_weights: dict[str, float] = field(default_factory=dict)
    """How often the images of a source occur, 1 where it is not named."""
    prepared: dict[int, Ahead] = field(default_factory=dict, init=False)
    """Epochs that were begun before they were asked for."""

    def epoch(self, epoch: int, left: epoch_plan.Intervals) -> Iterator[Batch]:
        """`epoch_plan.steps(left, ...)` batches, the same number on every rank; a shorter share
        ends with fillers (image id -1), which carry no loss.

        `left` are places of the epoch's sequence, which has `places` of them.
        """
        whole = [(0, self.places)]
        ready = self.prepared.pop(epoch, None) if left == whole else None
        steps = epoch_plan.steps(left, batches=self.batches)
        with ready or self.begin(epoch, left) as batches:
            for number, batch in enumerate(batches):
                if number == 0:
                    began = time.monotonic()
                # Of those after the first, which waits for the start.
                batch_s = (time.monotonic() - began) / number if number else math.inf
                ending = steps - 1 - number <= max(
                    WHOLE_BATCHES_AHEAD, BEGIN_S / max(batch_s, 1e-9)
                )
                if ending and epoch + 1 < self.epochs and epoch + 1 not in self.prepared:
                    self.prepared[epoch + 1] = self.begin(epoch + 1, whole)
                yield batch

    def close(self) -> None:
        """Stop the threads of epochs that were prepared and not used."""
        while self.prepared:
            self.prepared.popitem()[1].close()

    def begin(self, epoch: int, left: epoch_plan.Intervals) -> Ahead:
        return Ahead(self.produce(epoch, left), depth=WHOLE_BATCHES_AHEAD)

    def produce(self, epoch: int, left: epoch_plan.Intervals) -> Generator[Batch]:
        counts, images = self.shard_set.rows_per_group, self.batches[self.rank]
        copies = (
            None
            if self.shares is None
            else epoch_plan.copies(self.shares, total=self.places, seed=self.seed, epoch=epoch)
        )
        stored = epoch_plan.epoch_sequence(
            counts, seed=self.seed, epoch=epoch, window=self.window, copies_N=copies
        )
        order = epoch_plan.arrangement(self.preferred[stored], run=self.run or sum(self.batches))
        places = order[
            epoch_plan.places_of(epoch_plan.cut(left, rank=self.rank, batches=self.batches))
        ]
        canvases = epoch_plan.batch_canvases(self.preferred[stored[places]], batch=images)
        # Read in the order of the sequence, in which the rows of a row group are near each other:
        # those of a seldom canvas come from all over. What is read before its turn waits here,
        # encoded: less than one run a canvas.
        reading = np.argsort(places)
        canvas_of_place = np.repeat(canvases, images)[: len(places)]
        sampler = Sampler(
            self.canvases,
            self.long_side,
            len(self.shard_set.categories),
            self.seed,
            epoch,
            self.augmentation,
            self.mirror_later,
        )
        units = epoch_plan.units(stored[places[reading]], counts, window=self.window)
        marks = {
            "copy": epoch_plan.copy_numbers(stored)[places[reading]],
            "canvas": canvas_of_place[reading],
        }

        def samples() -> Iterator[tuple[Sample, int, Tensor | None]]:
            if self.decode == "threads":
                arriving, make = (
                    iterate(planned_rows(self.shard_set, units, **marks)),
                    sampler.sample,
                )
            else:
                arriving, make = (
                    iterate(sampled_rows(self.shard_set, units, sampler, **marks)),
                    sampler.received,
                )
            in_turn = in_order(range(len(places)), zip(reading.tolist(), arriving, strict=True))

            def draw(placed: tuple[dict[str, Any], Tensor, int]) -> tuple[Sample, int, Tensor]:
                row, batch, place = placed
                return make(row, batch[place]), row["copy"], batch

            yield from ordered_map(draw, self.with_places(in_turn, images), threads=self.threads)

        def padded() -> Iterator[tuple[Sample, int, Tensor | None]]:
            last = blank(self.canvases)
            for last, copy, batch in samples() if len(places) else ():
                yield last, copy, batch
            for _ in range(epoch_plan.steps(left, batches=self.batches) * images - len(places)):
                yield replace(last, image_id=-1), 0, None

        for chunk in chunks(padded(), images):
            made, copy, batch = zip(*chunk, strict=True)
            yield sampler.batch(made, copy, batch[0])

    def with_places(
        self, rows: Iterator[dict[str, Any]], images: int
    ) -> Iterator[tuple[dict[str, Any], Tensor, int]]:
        """Each row with the memory of its batch and its number in it. Pictures are drawn where they
        are to be: stacking copies took 0.1 ms each.
        """
        for number, row in enumerate(rows):
            if number % images == 0:
                batch = empty_canvases(images, self.canvases[row["canvas"]])
            yield row, batch, number % images

    @cached_property
    def places(self) -> int:
        """Images of an epoch, copies counted; the same in every epoch, so that images seen tell the
        epoch.
        """
        return (
            self.shard_set.num_rows
            if self.shares is None
            else max(1, round(float(self.shares.sum())))
        )

    @cached_property
    def shares(self) -> np.ndarray | None:
        """float64 (N,): how often each row should occur in an epoch; None: each once."""
        if not self.repeat_threshold and not self.source_weights:
            return None
        shares = np.ones(self.shard_set.num_rows)
        if self.source_weights:
            weights = np.array(
                [self.source_weights.get(name, 1.0) for name in self.shard_set.source_names]
            )
            shares *= weights[read_columns(self.shard_set, ["source"])["source"].to_numpy()]
        if self.repeat_threshold:
            columns = read_columns(self.shard_set, ["labels", "crowd"])
            pairs = zip(columns["labels"].to_pylist(), columns["crowd"].to_pylist(), strict=True)
            # Crowds are not trained on, so they show nothing of a rare class.
            labels = [
                [label for label, crowd in zip(*of_image, strict=True) if not crowd]
                for of_image in pairs
            ]
            shares *= epoch_plan.repeat_factors(
                labels, classes=len(self.shard_set.categories), threshold=self.repeat_threshold
            )
        return shares

    @cached_property
    def preferred(self) -> np.ndarray:
        return preferred_canvases(self.shard_set, self.canvases, long_side=self.long_side)


def blank(canvases: Sequence[tuple[int, int]]) -> Sample:
    """The filler of a rank that got no row at all."""
    return evaluation_sample(np.zeros((*canvases[0], 3), np.uint8), -1, canvases=canvases)
