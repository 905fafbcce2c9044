"""The model package, and a predictor that loads it: pictures of any size -> detections in px of
each picture.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from detector import json_text
from detector.baseline import Baseline
from detector.baselines import build_model
from detector.batch import (
    Batch,
    Sample,
    collate_by_canvas,
    collate_pictures,
    on_device,
    unmirrored,
)
from detector.checkpoint import load_weights
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.decode import DecodeSettings, Detections, decode_detections
from detector.folding import for_detecting
from detector.image import Jpeg
from detector.merge import PictureMerger, merge_flipped
from detector.model import RetinaNet
from detector.placement import evaluation_sample
from detector.precision import autocast_dtype
from detector.tiling import Picture, View, view_sample, views_of

ViewBatch = tuple[Batch, list[View]]
"""Views on one canvas, with what each is of its picture."""
WEIGHTS_FILE, MODEL_FILE, CLASSES_FILE = "model.safetensors", "model.json", "classes.json"


def write_package(
    folder: str, *, weights: str, description: dict[str, Any], classes: Sequence[dict[str, Any]]
) -> None:
    """Write a package; `weights` is a safetensors file of the network that `description` builds.

    `description`: {"model": keywords of `build_model`, "canvases": [[height, width], ...],
    "long_side": px or None, "decode": keywords of `decode_detections`, "amp": bool}; `classes`:
    [{"label": 0, "id": 1, "name": "RBC"}, ...] in the order of the labels, with the data set's own
    ids.
    """
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(weights, os.path.join(folder, WEIGHTS_FILE))
    for name, content in ((MODEL_FILE, description), (CLASSES_FILE, list(classes))):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)


def check_description(description: dict[str, Any]) -> None:
    """`ValueError` for a description that another version of the code wrote: it names the fields
    that are missing or unknown, or the part of the network that cannot be built.
    """

    def keywords(function: Callable[..., Any], *, required: bool) -> set[str]:
        taken = [
            p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        return {p.name for p in taken if not required or p.default is p.empty}

    lacking = {name for name in ("model", "canvases", "decode", "amp") if name not in description}
    unknown = description.keys() - {"model", "canvases", "long_side", "decode", "amp"}
    for section, function, also in (
        ("model", RetinaNet, {"architecture"}),
        ("decode", decode_detections, set()),
    ):
        given = description.get(section, {}).keys()
        lacking |= {
            f"{section}.{name}"
            for name in keywords(function, required=True) - given
            if section in description
        }
        unknown |= {
            f"{section}.{name}" for name in given - keywords(function, required=False) - also
        }
    wrong = [f"{name} is missing" for name in sorted(lacking)] + [
        f"{name} is unknown" for name in sorted(unknown)
    ]
    if not wrong:
        try:
            with torch.device("meta"):
                build_model(**description["model"])
        except ValueError as error:
            wrong = [f"model.{error}"]
    if wrong:
        raise ValueError(
            f"{MODEL_FILE}: {'; '.join(wrong[:3])}; it was written by another version of this code:"
            " use that version, or train and register again"
        )


class Predictor:
    """A network in evaluation mode with its canvases and thresholds. Thread-safe as long as the
    network's weights do not change.
    """

    def __init__(
        self,
        model: RetinaNet | Baseline,
        *,
        canvases: Sequence[tuple[int, int]],
        long_side: int | None = None,
        decode: DecodeSettings,
        amp: bool,
        batch_size: int = 8,
    ):
        self.model = model
        self.canvases = canvases
        self.long_side = long_side
        self.decode = decode
        self.amp = amp
        self.batch_size = batch_size

    @classmethod
    def load(cls, folder: str, *, device: str = "cpu", batch_size: int = 8) -> Predictor:
        """Load a package folder. `ValueError` where its weights do not fit its description, or
        another version of the code wrote it.
        """
        description = read_json(folder, MODEL_FILE)
        check_description(description)
        model = build_model(**description["model"])
        load_weights(model, os.path.join(folder, WEIGHTS_FILE))
        model = for_detecting(model, device, amp=description["amp"])
        canvases = [(height, width) for height, width in description["canvases"]]
        return cls(
            model,
            canvases=canvases,
            long_side=description.get("long_side"),
            decode=description["decode"],
            amp=description["amp"],
            batch_size=batch_size,
        )

    @property
    def device(self) -> torch.device:
        """Of the network."""
        return self.model.pixel_mean.device

    def __call__(self, images: Sequence[np.ndarray | Jpeg]) -> list[Detections]:
        """Upright RGB uint8 (H, W, 3) pictures, or results of `open_image` -> their detections,
        boxes in px of the picture.

        `ImageError` for a JPEG that proves to be damaged; to detect in the other pictures all the
        same, call `sample` and `detect_all` instead.
        """
        by_id = self.detect_all(self.sample(image, i) for i, image in enumerate(images))
        return [by_id[i] for i in range(len(images))]

    def sample(self, image: np.ndarray | Jpeg, image_id: int) -> tuple[Sample, tuple[int, int]]:
        """The picture on its canvas, decoded, and its original (height, width) px."""
        height, width = image.shape[:2]
        sample = evaluation_sample(
            image, image_id, canvases=self.canvases, long_side=self.long_side
        )
        return sample, (height, width)

    def detect_all(
        self, samples: Iterable[tuple[Sample, tuple[int, int]]]
    ) -> dict[int, Detections]:
        """The detections of each image id, boxes in px of the original picture."""
        by_id: dict[int, Detections] = {}
        for batch, sizes in collate_by_canvas(samples, self.batch_size):
            by_id.update(zip(batch.image_ids.tolist(), self.detect(batch, sizes), strict=True))
        return by_id

    def view_samples(
        self, image: np.ndarray | Jpeg, image_id: int, settings: ViewSettings = WHOLE_PICTURE
    ) -> list[tuple[Sample, View]]:
        """The views of the picture, each on its canvas. `ImageError` for a damaged JPEG."""
        picture, (height, width) = Picture(image), image.shape[:2]
        return [
            view_sample(picture, image_id, view, canvases=self.canvases, long_side=self.long_side)
            for view in views_of(height, width, settings)
        ]

    def detect_views(
        self,
        pictures: Iterable[Iterable[tuple[Sample, View]]],
        settings: ViewSettings = WHOLE_PICTURE,
    ) -> dict[int, Detections]:
        """The detections of each image id, boxes in px of the picture; `pictures` have the views of
        each, see `view_samples`. Views of different pictures share batches.
        """
        return self.detect_batches(self.batches(pictures), settings)

    def batches(self, pictures: Iterable[Iterable[tuple[Sample, View]]]) -> Iterator[ViewBatch]:
        """The views of the pictures in batches, in pinned memory where a GPU is to copy them."""
        for batch, views in collate_pictures(pictures, self.batch_size):
            yield (batch.pinned() if self.device.type == "cuda" else batch), views

    def detect_batches(
        self, batches: Iterable[ViewBatch], settings: ViewSettings = WHOLE_PICTURE
    ) -> dict[int, Detections]:
        """`detect_views` of what `batches` returns. A GPU copies a batch while it detects in the
        one before.
        """
        merger, by_id, beside = self.merger(), dict[int, Detections](), deque[list[View]]()

        def alone() -> Iterator[Batch]:
            for batch, views in batches:
                beside.append(views)
                yield batch

        for batch in on_device(alone(), self.device):
            image_ids, views = batch.image_ids.tolist(), beside.popleft()
            found = self.detect(batch, [view.size for view in views], flip=settings.flip)
            by_id |= merger.add(image_ids, views, found)
        return by_id

    def merger(self) -> PictureMerger:
        """Puts the detections of views together, on the network's device."""
        return PictureMerger(self.decode, self.device)

    @torch.no_grad()
    def detect(
        self, batch: Batch, original_sizes: Sequence[tuple[int, int]], *, flip: bool = False
    ) -> list[Detections]:
        """Detections of a batch on one of the canvases, boxes in px of the original pictures, whose
        (height, width) px are `original_sizes`. With `flip` those of the mirror images too, merged.
        """
        device = self.device
        batch = batch.to(device)
        was_training = self.model.training
        self.model.eval()
        on_canvas = self.on_canvas(batch)
        if flip:
            mirrored = unmirrored(replace(batch, mirrored_B=torch.ones_like(batch.mirrored_B)))
            on_canvas = [
                merge_flipped(
                    plain,
                    turned,
                    width,
                    nms_threshold=self.decode["nms_threshold"],
                    max_detections=self.decode["max_detections"],
                    device=device,
                )
                for plain, turned, (_, width) in zip(
                    on_canvas, self.on_canvas(mirrored), batch.sizes_B2.tolist(), strict=True
                )
            ]
        self.model.train(was_training)
        return [
            rescale(detections, (height, width), original)
            for detections, (height, width), original in zip(
                on_canvas, batch.sizes_B2.tolist(), original_sizes, strict=True
            )
        ]

    def on_canvas(self, batch: Batch) -> list[Detections]:
        """The detections of a batch on the network's device, boxes in px on the canvas."""
        device = batch.images.device
        dtype = autocast_dtype(device, amp=self.amp)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return self.model.detect(batch.images, batch.sizes_B2, **self.decode)


def rescale(
    detections: Detections, on_canvas: tuple[float, float], original: tuple[int, int]
) -> Detections:
    """From the (height, width) px of a picture on the canvas to its original (height, width) px; a
    box at the border stays exactly there.

    In float64, with the multiplication first: a factor rounded to float32 moves some borders a
    fraction of a pixel inside, such as that of 427 px shown at 41.
    """
    boxes_N4 = (
        detections.boxes_N4.astype(np.float64)
        * ([original[1], original[0]] * 2)
        / ([on_canvas[1], on_canvas[0]] * 2)
    )
    return Detections(boxes_N4.astype(np.float32), detections.scores_N, detections.labels_N)


def read_json(folder: str, name: str) -> Any:
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json_text.parse(file.read())
