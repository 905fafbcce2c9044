"""The files of the verb `evaluate` on the MLflow run of a training run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.runs import run_folder
from cluster.tracking.run import attach_run
from detector.choices import WHOLE_PICTURE, ViewSettings

NAME = "evaluation"
"""Of the folder of artifacts, and in front of the metrics: evaluation/<name>."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated beside the model: a shard set, and the settings that change the numbers."""

    data: str
    """URI of the set."""
    data_digest: str
    max_detections: int | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class of the data -> class of the model, where the names differ."""
    views: ViewSettings = WHOLE_PICTURE
    checkpoint: str = ""
    """The name of the run's checkpoint; empty for the best one."""

    @property
    def folder(self) -> str:
        """The name of its folder in that of the run."""
        settings = self._settings()
        return self.data_digest[:12] + (f"-{_digest(settings)}" if settings else "")

    def name_in(self, run: str) -> str:
        """Its name in MLflow: `NAME` for the run's own val set with the usual settings. Any other
        one has its digest behind that, because it has other numbers.
        """
        claim = run_folder.read_claim(run)
        own = None if claim is None else claim.identity.get("data", {}).get("val")
        settings = self._settings()
        if self.data_digest == own and not settings:
            return NAME
        return f"{NAME}-{_digest({'data_digest': self.data_digest, **settings})}"

    def as_text(self) -> str:
        """What the digest stands for, as JSON."""
        of = {"data": self.data, "data_digest": self.data_digest}
        return json.dumps(of | self._settings(), ensure_ascii=False)

    def _settings(self) -> dict[str, Any]:
        """Those that are not the usual ones."""
        limit = {} if self.max_detections is None else {"max_detections": self.max_detections}
        classes = {"classes": dict(self.classes)} if self.classes else {}
        checkpoint = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        return {**limit, **classes, **checkpoint, **self.views.as_dict()}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def log_evaluation(
    uri: str, run_id: str, folder: str, *, subject: Subject, name: str, step: int
) -> None:
    """Log the metrics, the table, the report and the pictures in a local `folder`, which
    `scoring.evaluate_package` has filled. `step` is images seen. A `name` with a digest becomes a
    tag, which says what it stands for.
    """
    run = attach_run(uri, run_id)
    if name != NAME:
        run.set_tag(name, subject.as_text())
    with open(os.path.join(folder, "metrics.json"), encoding="utf-8") as file:
        metrics = json.load(file)
    scores = {key: value for key, value in metrics.items() if isinstance(value, float)}
    run.log_metrics({f"{name}/{key}": value for key, value in scores.items()}, step)
    for file_name in sorted(os.listdir(folder)):
        if os.path.isfile(path := os.path.join(folder, file_name)):
            run.log_artifact(path, name)
    for picture in sorted(os.listdir(os.path.join(folder, "overlays"))):
        run.log_artifact(os.path.join(folder, "overlays", picture), f"{name}/overlays")
    run.close()
