"""The models-from-code script of a registered detector: MLflow runs this file to load the model;
nothing imports it.

It travels with the model next to a copy of detector/, so it knows those two and MLflow alone. The
weights are safetensors: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException

from detector.image import ImageError, open_image
from detector.predict import CLASSES_FILE, Predictor

# Bounds the decoded pixels in memory; a request may hold thousands of images.
IMAGES_PER_CALL = 8


class PackagedDetector(mlflow.pyfunc.PythonModel):
    """Encoded images -> boxes. One output row for every input row, in order."""

    def load_context(self, context: Any) -> None:
        folder = context.artifacts["package"]
        self.predictor = Predictor.load(
            folder,
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=IMAGES_PER_CALL,
        )
        with open(os.path.join(folder, CLASSES_FILE), encoding="utf-8") as file:
            self.names = {entry["label"]: entry["name"] for entry in json.load(file)}

    # MLflow looks the argument names up: they must be exactly these.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Columns `image` (encoded bytes of any format Pillow reads) and, optionally, `image_id` ->
        `boxes` (N,4) XYXY pixels of the upright image, `scores` (N,), `labels` (N,) 0..K-1 and
        `names` (N,), as lists, best score first.

        `MlflowException` (HTTP 400 from a server) naming the image_id, or the row, of a picture
        that cannot be decoded.
        """
        images = [bytes(image) for image in model_input["image"]]
        named = "image_id" in model_input and model_input["image_id"].notna().all()
        who = (
            [f"image_id {i!r}" for i in model_input["image_id"]]
            if named
            else [f"row {i}" for i in range(len(images))]
        )
        rows = []
        for i in range(0, len(images), IMAGES_PER_CALL):
            places = range(i, min(i + IMAGES_PER_CALL, len(images)))
            found = self.predictor.detect_all([self.sample(images[j], j, who[j]) for j in places])
            for j in places:
                labels = found[j].labels_N.tolist()
                rows.append(
                    (
                        found[j].boxes_N4.tolist(),
                        found[j].scores_N.tolist(),
                        labels,
                        [self.names[label] for label in labels],
                    )
                )
        return pd.DataFrame(rows, columns=["boxes", "scores", "labels", "names"])

    def sample(self, data: bytes, place: int, who: str) -> Any:
        try:
            return self.predictor.sample(open_image(data), place)
        except ImageError as error:
            raise MlflowException.invalid_parameter_value(f"{who}: {error}") from error


mlflow.models.set_model(PackagedDetector())
