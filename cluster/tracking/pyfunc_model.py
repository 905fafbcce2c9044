"""The models-from-code script of a registered detector: MLflow runs this file to load the model;
nothing imports it.

It is logged with the model, next to a copy of detector/, so it imports detector/ and MLflow alone.
The weights are safetensors: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from detector.batch import Sample
from detector.decode import Detections
from detector.image import ImageError, open_image
from detector.operating_points import Thresholds
from detector.predict import CLASSES_FILE, Predictor

# Limits the decoded pixels in memory; a request may have thousands of images.
IMAGES_PER_CALL = 8
COLUMNS = ["boxes", "scores", "labels", "names", "error"]
Row = tuple[list[list[float]], list[float], list[int], list[str], str]


class PackagedDetector(PythonModel):
    """Encoded images -> boxes. One output row for every input row, in order."""

    def load_context(self, context: Any) -> None:
        folder = context.artifacts["package"]
        self.predictor = Predictor.load(
            folder,
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=IMAGES_PER_CALL,
        )
        with open(os.path.join(folder, CLASSES_FILE), encoding="utf-8") as file:
            self.class_names: dict[int, str] = {
                entry["label"]: entry["name"] for entry in json.load(file)
            }
        self.thresholds: Thresholds | None = None
        path = os.path.join(folder, "thresholds.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.thresholds = Thresholds.from_json(json.load(file))

    # MLflow inspects the names of the arguments: they must be exactly these. Its own method returns
    # None and is annotated so.
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Columns `image` (encoded bytes of any format Pillow reads) and, optionally, `image_id` ->
        `boxes` (N,4) XYXY pixels of the upright image, `scores` (N,), `labels` (N,) 0..K-1 and
        `names` (N,), as lists, best score first, and `error`: why there are none, of an image that
        cannot be decoded; the others have an empty text.

        The parameter `thresholds` is `none` (all detections of the package) or `f1` (those that
        reach the score with which their class had the highest F1 in validation).
        `MlflowException` for another value, and where the package has no thresholds.
        """
        lowest = self._lowest((params or {}).get("thresholds", "none"))
        images = [bytes(image) for image in model_input["image"]]
        rows: list[Row] = []
        for start in range(0, len(images), IMAGES_PER_CALL):
            rows += self._rows(images[start : start + IMAGES_PER_CALL], lowest)
        return pd.DataFrame(rows, columns=COLUMNS)

    def _lowest(self, rule: str) -> np.ndarray | None:
        """The score that a detection of each class must reach."""
        if rule == "none":
            return None
        if rule != "f1" or self.thresholds is None:
            known = "none" if self.thresholds is None else "none or f1"
            raise MlflowException.invalid_parameter_value(
                f"thresholds {rule!r}: this model has {known}; give that"
            )
        return self.thresholds.lowest_of([name for _, name in sorted(self.class_names.items())])

    def _rows(self, images: list[bytes], lowest: np.ndarray | None) -> list[Row]:
        samples: list[tuple[Sample, tuple[int, int]]] = []
        errors: dict[int, str] = {}
        for number, data in enumerate(images):
            try:
                samples.append(self.predictor.sample(open_image(data), number))
            except ImageError as error:
                errors[number] = str(error)
        found = self.predictor.detect_all(samples)
        return [
            ([], [], [], [], errors[number])
            if number in errors
            else self._row(found[number] if lowest is None else found[number].reaching(lowest))
            for number in range(len(images))
        ]

    def _row(self, found: Detections) -> Row:
        labels = found.labels_N.tolist()
        names = [self.class_names[label] for label in labels]
        return found.boxes_N4.tolist(), found.scores_N.tolist(), labels, names, ""


set_model(PackagedDetector())
