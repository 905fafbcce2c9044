"""The model package, and a predictor over it: pictures of any size -> detections in each picture's
own frame.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from detector.augment import evaluation_sample
from detector.baselines import Baseline, build_model
from detector.batch import Batch, Sample, collate_by_canvas
from detector.checkpoint import load_weights
from detector.decode import Detections, decode_detections
from detector.folding import for_detecting
from detector.image import Jpeg
from detector.model import RetinaNet
from detector.precision import autocast_dtype

WEIGHTS_FILE, MODEL_FILE, CLASSES_FILE = "model.safetensors", "model.json", "classes.json"


def write_package(
    folder: str, *, weights: str, description: dict[str, Any], classes: Sequence[dict[str, Any]]
) -> None:
    """Write a package: `weights` is a safetensors file of the network that `description` builds.

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
    """`ValueError` naming the fields of a package's description that this version of the code
    lacks, or does not know, or the part of the network that it cannot build: another version wrote
    it.
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
        f"{name} is not known" for name in sorted(unknown)
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
    network's weights are left alone.
    """

    def __init__(
        self,
        model: RetinaNet | Baseline,
        *,
        canvases: Sequence[tuple[int, int]],
        long_side: int | None = None,
        decode: dict[str, Any],
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
        """Read a package folder. Raises `ValueError` where its weights and its description do not
        belong together, or to this version of the code.
        """
        description = read_json(folder, MODEL_FILE)
        check_description(description)
        model = build_model(**description["model"])
        load_weights(model, os.path.join(folder, WEIGHTS_FILE))
        model = for_detecting(model, device, amp=description["amp"])
        canvases = [(height, width) for height, width in description["canvases"]]
        settings = {name: description[name] for name in ("decode", "amp")}
        return cls(
            model,
            canvases=canvases,
            long_side=description.get("long_side"),
            batch_size=batch_size,
            **settings,
        )

    def __call__(self, images: Sequence[np.ndarray | Jpeg]) -> list[Detections]:
        """Upright RGB uint8 (H, W, 3) pictures, or what `open_image` gave -> their detections,
        boxes in px of the picture itself.

        `ImageError` for a JPEG that turns out to be damaged; where one is to cost no other picture,
        call `sample` and `detect_all` instead.
        """
        found = self.detect_all(self.sample(image, i) for i, image in enumerate(images))
        return [found[i] for i in range(len(images))]

    def sample(self, image: np.ndarray | Jpeg, image_id: int) -> tuple[Sample, tuple[int, int]]:
        """The picture on its canvas, decoded if it is a JPEG, and its original (height, width) px."""
        return (
            evaluation_sample(image, image_id, canvases=self.canvases, long_side=self.long_side),
            image.shape[:2],
        )

    def detect_all(
        self, samples: Iterable[tuple[Sample, tuple[int, int]]]
    ) -> dict[int, Detections]:
        """The detections of each image id, boxes in px of the original picture."""
        found: dict[int, Detections] = {}
        for batch, sizes in collate_by_canvas(samples, self.batch_size):
            found.update(zip(batch.image_ids.tolist(), self.detect(batch, sizes), strict=True))
        return found

    @torch.no_grad()
    def detect(self, batch: Batch, original_sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detections of a batch on one of the canvases in the frames of the original pictures,
        whose (height, width) px are given.
        """
        device = self.model.pixel_mean.device
        batch, dtype = batch.to(device), autocast_dtype(device, amp=self.amp)
        was_training = self.model.training
        self.model.eval()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            on_canvas = self.model.detect(batch.images, batch.sizes_B2, **self.decode)
        self.model.train(was_training)
        return [
            rescale(d, tuple(size), original)
            for d, size, original in zip(
                on_canvas, batch.sizes_B2.tolist(), original_sizes, strict=True
            )
        ]


def rescale(
    found: Detections, on_canvas: tuple[float, float], original: tuple[int, int]
) -> Detections:
    """From the (height, width) px a picture has on the canvas to its original (height, width) px; a
    box on the border stays exactly there.

    In float64 and multiplied first: a factor rounded to float32 leaves some borders a fraction of a
    pixel inside, as of 427 px shown at 41.
    """
    boxes_N4 = (
        found.boxes_N4.astype(np.float64)
        * ([original[1], original[0]] * 2)
        / ([on_canvas[1], on_canvas[0]] * 2)
    )
    return Detections(boxes_N4.astype(np.float32), found.scores_N, found.labels_N)


def read_json(folder: str, name: str) -> Any:
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)
