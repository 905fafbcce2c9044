"""Tells what the network gets in the first batches of a run: after augmentation, with boxes."""

from __future__ import annotations

import io
import threading

import numpy as np
from PIL import Image

from cluster.runs.events import BatchSeen, Tell, TrainingWarning
from cluster.runs.pictures import BatchPicture
from detector.batch import Batch

BATCHES = 2
MOST_PICTURES = 8
"""Of a batch."""
SIDE = 640
"""px, the longer side of a copy."""


class FirstBatches:
    """Call it with every batch after its step. Threads copy the first ones, so that no step waits;
    if that fails, the run does without the picture.
    """

    def __init__(self, *, tell: Tell, wanted: bool):
        self._tell, self._wanted = tell, wanted
        self._threads: list[threading.Thread] = []

    def __call__(self, batch: Batch, number: int) -> None:
        """`number` counts the batches of the run from 0, so a run that is resumed later tells
        nothing again.
        """
        if self._wanted and number < BATCHES:
            thread = threading.Thread(
                target=self._copy, args=(batch, number), name="first-batches", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def wait(self) -> None:
        """Wait until every picture is sent."""
        for thread in self._threads:
            thread.join()

    def _copy(self, batch: Batch, number: int) -> None:
        try:
            _, _, height, width = batch.images.shape
            self._tell(BatchSeen(number, (height, width), batch_pictures(batch)))
        except Exception as error:  # whatever it is, the training is worth more
            self._tell(
                TrainingWarning(
                    f"batch {number} cannot be shown, training continues:"
                    f" {type(error).__name__}: {error}"
                )
            )


def batch_pictures(batch: Batch) -> tuple[BatchPicture, ...]:
    """Small copies of the first `MOST_PICTURES` images of a batch whose pictures are flipped as
    their boxes; fillers are left out.
    """
    few = Batch(*(getattr(batch, name)[:MOST_PICTURES].cpu() for name in vars(batch)))
    pictures = []
    for index, image_id in enumerate(few.image_ids.tolist()):
        if image_id < 0:
            continue
        boxes_G4, labels_G = few.boxes_BG4[index].numpy(), few.labels_BG[index].numpy()
        # Padding has the label of an ignore region, and no extent.
        real_G = (boxes_G4[:, 2:] > boxes_G4[:, :2]).all(axis=1)
        image = Image.fromarray(np.ascontiguousarray(few.images[index].permute(1, 2, 0).numpy()))
        scale = min(1.0, SIDE / max(image.size))
        image.thumbnail((SIDE, SIDE))
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=90)
        pictures.append(
            BatchPicture(image_id, sink.getvalue(), boxes_G4[real_G] * scale, labels_G[real_G])
        )
    return tuple(pictures)
