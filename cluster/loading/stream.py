"""The training batches of one rank: plan, Ray Data, decoding, augmentation.

Ray Data moves encoded bytes (six to nine times smaller than pixels) in the order of the plan.
Decoding and augmentation run in threads beside the trainer, or in tasks of Ray Data where there are
machines without GPUs. Both ways give the same pixels.
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
"""The next epoch starts this many seconds before the expected end of an epoch: its first batch
takes 0.2 s, and longer where a step keeps the cores busy."""


@dataclass
class Stream:
    """The training batches of one rank, epoch after epoch.

    Memory besides the batches in use: for encoded images `datasets.READ_TASKS` + 2 windows of
    `epoch_plan.WINDOW` row groups in the object store (16 MiB each where no image exceeds 4 MiB and
    none is repeated, see `write.MAX_GROUP_BYTES`); for decoded images `WHOLE_BATCHES_AHEAD` batches
    and the batches of the next four images per thread. Twice that where two epochs overlap. Tasks
    that decode fill the object store as far as Ray Data allows.
    """

    shard_set: ShardSet
    rank: int
    batches: Sequence[int]
    """Images of each rank's batch; their sum is the global batch."""
    run: int | None = field(default=None, kw_only=True)
    """Images of a run in `epoch_plan.arrangement`. It must stay the same for a whole epoch, also
    after failures. None: the global batch.
    """
    canvases: Sequence[tuple[int, int]]
    """(height, width) px. A batch has the one that most of its images prefer."""
    long_side: int | None = field(default=None, kw_only=True)
    """Most px of the longer side of an image on its canvas; None: no limit."""
    seed: int
    epochs: int = 1
    """Number of epochs: the first batches of an epoch are made during the last ones of the epoch
    before.
    """
    augmentation: dict[str, Any] = field(default_factory=dict)
    """See `cluster.loading.sampler.Sampler`."""
    mirror_later: bool = False
    """Leave the flips to `detector.batch.on_device`."""
    pinned: bool = False
    """Draw the images in pinned memory, for a GPU: copying them there in the thread that trains
    took 3 to 6 ms of a step of 36 ms (16 x 800x800).
    """
    threads: int = 1
    decode: Literal["threads", "tasks"] = "threads"
    window: int = epoch_plan.WINDOW
    repeat_threshold: float = 0.0
    """Repeat images whose rarest class is in a smaller share of the images than this, see
    `epoch_plan.repeat_factors`; 0: repeat none.
    """
    source_weights: dict[str, float] = field(default_factory=dict)
    """How often the images of a source occur, by name; 1 for other sources."""
    _prepared: dict[int, Ahead] = field(default_factory=dict, init=False)
    """Epochs that started ahead of their use."""

    def epoch(self, epoch: int, left: epoch_plan.Intervals) -> Iterator[Batch]:
        """`epoch_plan.steps(left, ...)` batches, the same number on every rank; a shorter share
        ends with fillers (image id -1), which have no loss.

        `left` is the data position in the epoch's sequence of `places` places.
        """
        whole = [(0, self.places)]
        ready = self._prepared.pop(epoch, None) if left == whole else None
        steps = epoch_plan.steps(left, batches=self.batches)
        began = 0.0
        with ready or self._begin(epoch, left) as batches:
            for number, batch in enumerate(batches):
                if number == 0:
                    began = time.monotonic()
                # The pace without the first batch, which waits for the start.
                batch_s = (time.monotonic() - began) / number if number else math.inf
                ending = steps - 1 - number <= max(
                    WHOLE_BATCHES_AHEAD, BEGIN_S / max(batch_s, 1e-9)
                )
                if ending and epoch + 1 < self.epochs and epoch + 1 not in self._prepared:
                    self._prepared[epoch + 1] = self._begin(epoch + 1, whole)
                yield batch

    def close(self) -> None:
        """Stop the threads of prepared epochs that were not used."""
        while self._prepared:
            self._prepared.popitem()[1].close()

    def _begin(self, epoch: int, left: epoch_plan.Intervals) -> Ahead:
        return Ahead(self._produce(epoch, left), depth=WHOLE_BATCHES_AHEAD)

    def _produce(self, epoch: int, left: epoch_plan.Intervals) -> Generator[Batch]:
        counts, images = self.shard_set.rows_per_group, self.batches[self.rank]
        copies = (
            None
            if self._shares is None
            else epoch_plan.copies(self._shares, total=self.places, seed=self.seed, epoch=epoch)
        )
        stored = epoch_plan.epoch_sequence(
            counts, seed=self.seed, epoch=epoch, window=self.window, copies_N=copies
        )
        order = epoch_plan.arrangement(self._preferred[stored], run=self.run or sum(self.batches))
        places = order[
            epoch_plan.places_of(epoch_plan.cut(left, rank=self.rank, batches=self.batches))
        ]
        canvases = epoch_plan.batch_canvases(self._preferred[stored[places]], batch=images)
        # Read in the order of the sequence, where the rows of a row group are near each other; the
        # rows of a rare canvas come from everywhere. Rows that arrive early wait here, encoded:
        # less than one run per canvas.
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
                    iterate(planned_rows(self.shard_set, units, marks=marks)),
                    sampler.sample,
                )
            else:
                arriving, make = (
                    iterate(sampled_rows(self.shard_set, units, sampler, marks=marks)),
                    sampler.received,
                )
            in_turn = in_order(range(len(places)), zip(reading.tolist(), arriving, strict=True))

            def draw(placed: tuple[dict[str, Any], Tensor, int]) -> tuple[Sample, int, Tensor]:
                row, batch, place = placed
                return make(row, batch[place]), row["copy"], batch

            yield from ordered_map(draw, self._with_memory(in_turn, images), threads=self.threads)

        def padded() -> Iterator[tuple[Sample, int, Tensor | None]]:
            last = _blank(self.canvases)
            for last, copy, batch in samples() if len(places) else ():
                yield last, copy, batch
            for _ in range(epoch_plan.steps(left, batches=self.batches) * images - len(places)):
                yield replace(last, image_id=-1), 0, None

        for chunk in chunks(padded(), images):
            made, copy, batch = zip(*chunk, strict=True)
            whole = sampler.batch(made, copy, batch[0])
            # The other columns are small; here they are copied beside the training.
            yield whole.pinned() if self.pinned else whole

    def _with_memory(
        self, rows: Iterator[dict[str, Any]], images: int
    ) -> Iterator[tuple[dict[str, Any], Tensor, int]]:
        """Each row with the memory of its batch and its index in the batch. Images are drawn in
        place: stacking them afterwards cost 0.1 ms per image.
        """
        batch = Tensor()
        for number, row in enumerate(rows):
            if number % images == 0:
                canvas = self.canvases[row["canvas"]]
                batch = empty_canvases(images, canvas, pinned=self.pinned)
            yield row, batch, number % images

    @cached_property
    def places(self) -> int:
        """Images of an epoch, with copies; the same number in every epoch, so that the number of
        images seen determines the epoch.
        """
        return (
            self.shard_set.num_rows
            if self._shares is None
            else max(1, round(float(self._shares.sum())))
        )

    @cached_property
    def _shares(self) -> np.ndarray | None:
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
            # Crowds are not trained on, so they do not count as objects of a rare class.
            labels = [
                [label for label, crowd in zip(*of_image, strict=True) if not crowd]
                for of_image in pairs
            ]
            shares *= epoch_plan.repeat_factors(
                labels, classes=len(self.shard_set.categories), threshold=self.repeat_threshold
            )
        return shares

    @cached_property
    def _preferred(self) -> np.ndarray:
        return preferred_canvases(self.shard_set, self.canvases, long_side=self.long_side)


def _blank(canvases: Sequence[tuple[int, int]]) -> Sample:
    """The filler of a rank without rows."""
    return evaluation_sample(np.zeros((*canvases[0], 3), np.uint8), -1, canvases=canvases)
