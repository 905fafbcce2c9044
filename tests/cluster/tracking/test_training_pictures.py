"""What is drawn for the MLflow run of a training, when, and what happens if it fails."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.runs.evaluations import Evaluation
from cluster.runs.events import BatchSeen, EvaluationDone, TrainingWarning
from cluster.runs.pictures import BatchPicture, ExampleImage
from cluster.shards.index import ShardSet, open_shard_set
from cluster.shards.read import read_columns
from cluster.tracking.training_pictures import TrainingPictures

NO_BOXES = np.empty((0, 4), np.float32)


class Run:
    """An MLflow run in memory, which its store may not take."""

    run_id = "1f"

    def __init__(self, *, stored: tuple[str, ...] = (), sends: bool = True):
        self.files: dict[str, Any] = {}
        self.stored, self.sends = stored, sends
        self.values: dict[str, list[tuple[int, float]]] = {}
        self.client = self

    def list_artifacts(self, run_id: str) -> list[SimpleNamespace]:
        assert run_id == self.run_id
        return [SimpleNamespace(path=path) for path in self.stored]

    def get_metric_history(self, run_id: str, key: str) -> list[SimpleNamespace]:
        values = self.values.get(key, [])
        return [SimpleNamespace(step=step, value=value) for step, value in values]

    def log_bytes(self, content: bytes, file: str) -> None:
        self.files[file] = content

    def log_text(self, text: str, file: str) -> None:
        self.files[file] = text

    def send(self, *, patience_s: float) -> bool:
        return self.sends


@pytest.fixture
def draws(small_sets: dict[str, str]) -> Callable[..., Run]:
    """Draws these events of a training of `small_sets` on a run, and ends."""

    def draw(run: Run, *events: Any, patience_s: float = 600) -> Run:
        pictures = TrainingPictures("cells", open_shard_set(small_sets["train"]), small_sets["val"])
        pictures.begin(run)
        for event in events:
            pictures.add(run, event)
        pictures.finish(run, patience_s=patience_s)
        return run

    return draw


def batch_seen(number: int = 0) -> BatchSeen:
    sink = io.BytesIO()
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(sink, "JPEG")
    boxes = np.array([[5, 5, 40, 40], [50, 5, 70, 40]], np.float32)
    picture = BatchPicture(7, sink.getvalue(), boxes, np.array([0, -1]))
    return BatchSeen(number, (60, 80), (picture,))


def evaluated(val_set: ShardSet, epoch: int, score: float) -> EvaluationDone:
    ids = read_columns(val_set, ["image_id"])["image_id"].to_pylist()[:2]
    box = np.array([[5, 5, 40, 40]], np.float32)
    examples = (
        ExampleImage(ids[1], box, box + 3, np.array([score]), np.array([1])),
        ExampleImage(ids[0], NO_BOXES, NO_BOXES, np.empty(0), np.empty(0, np.int64)),
    )
    return EvaluationDone(
        Evaluation("/c", 24 * epoch, epoch, metrics={"AP": 0.5}, examples=examples)
    )


def test_a_run_gets_batches_labels_predictions_and_curves(
    draws: Callable[..., Run], small_sets: dict[str, str]
) -> None:
    run, val_set = Run(), open_shard_set(small_sets["val"])
    run.values = {"train/box": [(16, 1.0), (8, 2.0)], "val/AP": [(24, 0.5)]}
    draws(run, batch_seen(), evaluated(val_set, 1, 0.9), evaluated(val_set, 12, 0.1))
    assert sorted(run.files) == [
        "curves.png",
        "labels.json",
        "labels.png",
        "train_batches/batch-0.jpg",
        "val_predictions/epoch-001.jpg",
        "val_predictions/epoch-012.jpg",
    ]
    for name, content in run.files.items():
        if not name.endswith(".json"):
            assert Image.open(io.BytesIO(content)).format == ("PNG" if "png" in name else "JPEG")
    labels = json.loads(run.files["labels.json"])
    assert labels["data.train"]["images"] == 24 and labels["data.val"]["images"] == 8
    assert labels["data.val"]["objects"] == val_set.counts.objects
    # The same images: a score below the least one is not drawn, so the sheets differ.
    first, later = (run.files[f"val_predictions/epoch-{epoch}.jpg"] for epoch in ("001", "012"))
    assert Image.open(io.BytesIO(first)).size == Image.open(io.BytesIO(later)).size
    assert first != later


def test_a_resumed_run_keeps_its_label_statistics(draws: Callable[..., Run]) -> None:
    assert draws(Run(stored=("labels.json", "labels.png", "config.json"))).files == {}


def test_without_its_numbers_in_the_store_a_run_has_no_curves(draws: Callable[..., Run]) -> None:
    run = Run(stored=("labels.json", "labels.png"), sends=False)
    run.values = {"train/box": [(8, 2.0)]}
    assert draws(run).files == {}


def test_an_evaluation_without_examples_is_not_drawn(draws: Callable[..., Run]) -> None:
    """As those that a driver reads from the run's folder."""
    run = Run(stored=("labels.json", "labels.png"))
    draws(run, EvaluationDone(Evaluation("/c", 24, 1)), TrainingWarning("x"))
    assert run.files == {}


def test_what_cannot_be_drawn_costs_one_warning_and_nothing_else(
    draws: Callable[..., Run], small_sets: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(stored=("labels.json", "labels.png"))
    broken = BatchSeen(0, (60, 80), (BatchPicture(7, b"no JPEG", NO_BOXES, np.empty(0)),))
    draws(run, broken, broken, evaluated(open_shard_set(small_sets["val"]), 1, 0.9))
    assert list(run.files) == ["val_predictions/epoch-001.jpg"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(
        "warning: train_batches/batch-0.jpg is not drawn: UnidentifiedImageError: "
    )
    assert warning.endswith("; training continues")


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Drawing waits until this event is set."""
    go_on = threading.Event()
    monkeypatch.setattr(TrainingPictures, "_draw_labels", lambda *_: go_on.wait())
    yield go_on
    go_on.set()


def test_the_end_of_a_training_does_not_wait_for_pictures_for_ever(
    blocked: threading.Event, draws: Callable[..., Run]
) -> None:
    assert draws(Run(), batch_seen(), patience_s=0.01).files == {}
