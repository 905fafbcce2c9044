"""What the verb `evaluate` finds, on the MLflow run of the detector's training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.runs import run_folder
from cluster.tracking.client import connected
from cluster.tracking.run import attach_run
from detector.choices import WHOLE_PICTURE, ViewSettings

NAME, COMPARISON = "evaluation", "comparison"
"""Of the folder of artifacts, and in front of the metrics: evaluation/<name>."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated on which shard set, and the settings that change the numbers."""

    data: str
    """URI of the set."""
    data_digest: str
    max_detections: int | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class of the data -> class of the model, where the names differ."""
    views: ViewSettings = WHOLE_PICTURE
    checkpoint: str = ""
    """The name of the run's checkpoint; empty for the best one."""
    models: tuple[str, ...] = ()
    """A registered version, or the two detectors of a comparison; empty for a training run."""

    @property
    def folder(self) -> str:
        """The name of its folder in that of the run."""
        settings = self._settings()
        return self.data_digest[:12] + (f"-{_digest(settings)}" if settings else "")

    def name_in(self, run: str | None) -> str:
        """Its name in MLflow: `NAME` for the own val set of the training run in the folder `run`
        with the usual settings. Any other one has its digest behind its kind, because it has other
        numbers.
        """
        settings = self._settings()
        if run is not None and not settings:
            claim = run_folder.read_claim(run)
            own = None if claim is None else claim.identity.get("data", {}).get("val")
            if self.data_digest == own:
                return NAME
        kind = COMPARISON if len(self.models) == 2 else NAME
        return f"{kind}-{_digest({'data_digest': self.data_digest, **settings})}"

    def as_text(self) -> str:
        """What the digest stands for, as JSON."""
        of = {"data": self.data, "data_digest": self.data_digest}
        return json.dumps(of | self._settings(), ensure_ascii=False)

    def _settings(self) -> dict[str, Any]:
        """Those that are not the usual ones."""
        limit = {} if self.max_detections is None else {"max_detections": self.max_detections}
        classes = {"classes": dict(self.classes)} if self.classes else {}
        checkpoint = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        models = {"models": list(self.models)} if self.models else {}
        return {**limit, **classes, **checkpoint, **models, **self.views.as_dict()}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def log_evaluation(
    uri: str, run_id: str, folder: str, *, subject: Subject, name: str, step: int
) -> None:
    """Log the metrics, the table, the report and the pictures in a local `folder`, which
    `scoring.evaluate_package` has filled. `step` is images seen. A `name` with a digest becomes a
    tag, which says what it stands for.
    """
    metrics = _read_json(folder, "metrics.json")
    scores = {key: value for key, value in metrics.items() if isinstance(value, float)}
    _log(uri, run_id, folder, scores, subject=subject, name=name, step=step)


def logged_interval(uri: str, run_id: str, *, step: int) -> tuple[float, float] | None:
    """The ends of the 95 % interval of AP that `evaluate` has logged of the checkpoint with `step`
    images seen, on the own val set of the run with the usual settings. None where it has not.
    """
    with connected(uri) as client:
        ends = [
            {
                metric.step: metric.value
                for metric in client.get_metric_history(run_id, f"{NAME}/AP_{end}")
            }
            for end in ("low", "high")
        ]
    return (ends[0][step], ends[1][step]) if all(step in each for each in ends) else None


def log_comparison(
    uri: str, run_id: str, folder: str, *, subject: Subject, name: str, step: int
) -> None:
    """The same of what `scoring.compare_packages` has written. The metrics are <name>/AP/first,
    /second, /difference, /low and /high, and so on.
    """
    found = _read_json(folder, "comparison.json")["numbers"]
    parts = ("first", "second", "difference", "low", "high")
    scores = {
        f"{number}/{part}": value
        for number, pair in found.items()
        for part in parts
        if (value := pair.get(part)) is not None
    }
    _log(uri, run_id, folder, scores, subject=subject, name=name, step=step)


def _log(
    uri: str,
    run_id: str,
    folder: str,
    scores: Mapping[str, float],
    *,
    subject: Subject,
    name: str,
    step: int,
) -> None:
    run = attach_run(uri, run_id)
    if name != NAME:
        run.set_tag(name, subject.as_text())
    run.log_metrics({f"{name}/{key}": value for key, value in scores.items()}, step)
    for path, _, names in sorted(os.walk(folder)):
        within = os.path.relpath(path, folder)
        for file_name in sorted(names):
            run.log_artifact(os.path.join(path, file_name), os.path.normpath(f"{name}/{within}"))
    run.close()


def _read_json(folder: str, name: str) -> dict[str, Any]:
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)
