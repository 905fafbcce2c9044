"""What a training shows on its MLflow run beside numbers: its first batches, label statistics, the
detections in a few images of data.val, and curves.

train_batches/batch-0.jpg    what the network got, after augmentation
labels.json, labels.png      data.train and data.val
val_predictions/epoch-003.jpg    the same images at each evaluation
curves.png                   at the end
"""

from __future__ import annotations

import io
import json
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cluster.runs.events import BatchSeen, EvaluationDone, Event
from cluster.shards.index import ShardSet, open_shard_set
from cluster.tracking.run import Run

if TYPE_CHECKING:
    from cluster.runs.evaluations import Evaluation
    from cluster.runs.pictures import BatchPicture, ExampleImage
    from detector.sheets import SheetPicture

SIDE = 640
"""px, the longer side of an image of data.val on a sheet."""
SCORE = 0.3
"""Detections from this score on are drawn."""
_LABELS = ("labels.json", "labels.png")


class TrainingPictures:
    """Draws in a thread of its own, so that neither training nor its metrics wait. If a picture
    fails the run does without it; a single warning says so.
    """

    def __init__(self, name: str, train_set: ShardSet, val_data: str):
        """The name of the training, data.train, and the URI of data.val."""
        self._name, self._train_set, self._val_data = name, train_set, val_data
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._val_images: dict[int, tuple[str, np.ndarray, float]] = {}
        self._has_warned = False
        self._thread = threading.Thread(target=self._work, name="pictures", daemon=True)

    def begin(self, run: Run) -> None:
        """Call it once, before the others, when the run is open."""
        self._thread.start()
        self._jobs.put(("labels", lambda: self._draw_labels(run)))

    def add(self, run: Run, event: Event) -> None:
        """Draw an event that has something to see; returns at once."""
        match event:
            case BatchSeen():
                name = f"train_batches/batch-{event.number}.jpg"
                self._jobs.put((name, lambda: run.log_bytes(self._batch_sheet(event), name)))
            case EvaluationDone() if event.evaluation.examples:
                made = event.evaluation
                name = f"val_predictions/epoch-{made.epoch:03d}.jpg"
                self._jobs.put((name, lambda: run.log_bytes(self._val_sheet(made), name)))
            case _:
                pass

    def finish(self, run: Run, *, patience_s: float) -> None:
        """Draw the curves of the whole run, if MLflow takes all its numbers within `patience_s`
        seconds; wait for as long until all is drawn.
        """
        if run.send(patience_s=patience_s):
            self._jobs.put(("curves.png", lambda: self._draw_curves(run)))
        self._jobs.put(None)
        self._thread.join(patience_s)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            name, draw = job
            try:
                draw()
            except Exception as error:  # whatever it is, the training is worth more
                if not self._has_warned:
                    self._has_warned = True
                    text = f"{name} is not drawn: {type(error).__name__}: {error}"
                    print(f"warning: {text}; training continues", file=sys.stderr, flush=True)

    def _draw_labels(self, run: Run) -> None:
        from cluster.reports.label_statistics import draw_label_statistics, label_statistics

        if set(_LABELS) <= {file.path for file in run.client.list_artifacts(run.run_id)}:
            return
        sets = {
            "data.train": label_statistics(self._train_set),
            "data.val": label_statistics(open_shard_set(self._val_data)),
        }
        content = {name: found.to_json() for name, found in sets.items()}
        run.log_text(json.dumps(content, indent=1), _LABELS[0])
        run.log_bytes(draw_label_statistics(sets), _LABELS[1])

    def _batch_sheet(self, event: BatchSeen) -> bytes:
        from detector.sheets import draw_sheet

        height, width = event.canvas
        return draw_sheet(
            [_batch_picture(picture) for picture in event.pictures],
            self._train_set.class_names,
            heading=f"batch {event.number} as the network gets it, canvas {width} x {height} px;"
            " dashed: ignored",
            columns=4,
        )

    def _val_sheet(self, made: Evaluation) -> bytes:
        from detector.sheets import draw_sheet

        self._read_val_images([example.image_id for example in made.examples])
        return draw_sheet(
            [self._val_picture(example) for example in made.examples],
            self._train_set.class_names,
            heading=f"epoch {made.epoch}, {made.images_seen:,} images seen, AP"
            f" {made.shown('AP', 3)}; dashed: objects, solid: detections from score {SCORE}",
            columns=3,
        )

    def _val_picture(self, example: ExampleImage) -> SheetPicture:
        from detector.sheets import SheetPicture

        name, image, scale = self._val_images[example.image_id]
        # Best first.
        shown = int((example.scores_N >= SCORE).sum())
        best = f"{example.scores_N[0]:.2f}" if len(example.scores_N) else "-"
        return SheetPicture(
            image,
            name,
            f": objects {len(example.objects_M4)}, detections {shown}, best score {best}",
            example.boxes_N4[:shown] * scale,
            example.labels_N[:shown],
            example.scores_N[:shown],
            dashed_M4=example.objects_M4 * scale,
        )

    def _read_val_images(self, image_ids: Sequence[int]) -> None:
        """Read those that are not in memory: the evaluations of a run have the same ones."""
        from cluster.reports.judged_pictures import rows_of
        from detector.image import decode_image

        missing = [each for each in image_ids if each not in self._val_images]
        for row in rows_of(open_shard_set(self._val_data), missing) if missing else ():
            image = Image.fromarray(decode_image(row["image"]))
            scale = min(1.0, SIDE / max(image.size))
            image.thumbnail((SIDE, SIDE))
            self._val_images[row["image_id"]] = (row["file_name"], np.asarray(image), scale)

    def _draw_curves(self, run: Run) -> None:
        from cluster.reports.training_curves import METRICS, draw_curves

        # MLflow has the whole run, also what drivers before this one have sent.
        histories = {name: run.client.get_metric_history(run.run_id, name) for name in METRICS}
        curves = {
            name: sorted((metric.step, metric.value) for metric in history)
            for name, history in histories.items()
        }
        if any(curves.values()):
            run.log_bytes(draw_curves(curves, heading=self._name), "curves.png")


def _batch_picture(picture: BatchPicture) -> SheetPicture:
    from detector.sheets import SheetPicture

    labelled_N = picture.labels_N >= 0
    return SheetPicture(
        np.asarray(Image.open(io.BytesIO(picture.jpeg))),
        f"image {picture.image_id}",
        f": objects {int(labelled_N.sum())}",
        picture.boxes_N4[labelled_N],
        picture.labels_N[labelled_N],
        dashed_M4=picture.boxes_N4[~labelled_N],
    )
