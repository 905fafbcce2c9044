"""The models-from-code script of a registered detector: MLflow runs this file to load the model;
nothing imports it.

It is logged with the model, next to a copy of detector/, so it imports detector/ and MLflow alone.
The weights are safetensors: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from detector.batch import Sample
from detector.image import ImageError, open_image
from detector.predict import CLASSES_FILE, Predictor

# Limits the decoded pixels in memory; a request may have thousands of images.
IMAGES_PER_CALL = 8


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

    # MLflow inspects the names of the arguments: they must be exactly these. Its own method returns
    # None and is annotated so.
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Columns `image` (encoded bytes of any format Pillow reads) and, optionally, `image_id` ->
        `boxes` (N,4) XYXY pixels of the upright image, `scores` (N,), `labels` (N,) 0..K-1 and
        `names` (N,), as lists, best score first.

        `MlflowException` (HTTP 400 from a server) names the image_id, or the row, of an image that
        cannot be decoded.
        """
        images = [bytes(image) for image in model_input["image"]]
        named = "image_id" in model_input and bool(model_input["image_id"].notna().all())
        names = (
            [f"image_id {image_id!r}" for image_id in model_input["image_id"]]
            if named
            else [f"row {number}" for number in range(len(images))]
        )
        rows = []
        for start in range(0, len(images), IMAGES_PER_CALL):
            numbers = range(start, min(start + IMAGES_PER_CALL, len(images)))
            detections = self.predictor.detect_all(
                [self._sample(images[number], number, names[number]) for number in numbers]
            )
            for number in numbers:
                of_image = detections[number]
                labels = of_image.labels_N.tolist()
                rows.append(
                    (
                        of_image.boxes_N4.tolist(),
                        of_image.scores_N.tolist(),
                        labels,
                        [self.class_names[label] for label in labels],
                    )
                )
        return pd.DataFrame(rows, columns=["boxes", "scores", "labels", "names"])

    def _sample(self, data: bytes, number: int, name: str) -> tuple[Sample, tuple[int, int]]:
        try:
            return self.predictor.sample(open_image(data), number)
        except ImageError as error:
            raise MlflowException.invalid_parameter_value(f"{name}: {error}") from error


set_model(PackagedDetector())
