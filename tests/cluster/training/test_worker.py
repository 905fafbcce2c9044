"""The loop of a worker without cluster, data and network: what it tells, saves and evaluates, by a
clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.errors import PlainError
from cluster.runs import evaluations, run_folder
from cluster.runs.evaluations import Evaluation, Request
from cluster.runs.events import (
    Event,
    RankTiming,
    Started,
    StepsDone,
    StoppedEarly,
    TrainingWarning,
    WorkerProcess,
)
from cluster.runs.training_config import TrainingConfig
from cluster.training import timing
from cluster.training.evaluation import EpochEvaluations
from cluster.training.first_batches import FirstBatches
from cluster.training.ranks import Ranks
from cluster.training.report import Reporter
from cluster.training.resume import Origin
from cluster.training.state import TrainingState
from cluster.training.step_reports import StepReports
from cluster.training.timing import Timing
from cluster.training.worker import Worker
from detector.step import NonFiniteLoss, StepReport

ALONE = Ranks(0, 1, torch.device("cpu"))


def step_report(
    *, classification: float = 0.5, own: tuple[bool, bool] = (True, True)
) -> StepReport:
    values = torch.tensor([classification, 0.5, 1.0, 1.0, 90.0])
    return StepReport(values, torch.tensor(own), torch.tensor([7, 8]))


class Clock:
    now = 0.0

    def takes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Step:
    """Takes a second; its reports are laid down or all the same."""

    network = torch.nn.Identity()

    def __init__(self, clock: Clock, reports: Iterator[StepReport] | None = None):
        self.clock, self.reports = clock, reports

    def __call__(self, batch: object, **_: object) -> StepReport:
        self.clock.takes(1)
        return step_report() if self.reports is None else next(self.reports)


@dataclass
class Checkpoints:
    """Stores nothing: what was saved, (images seen, to be evaluated). A save takes `seconds`."""

    run: str
    clock: Clock
    due_at: int = 0
    seconds: float = 0.0
    saved: list[tuple[int, bool]] = field(default_factory=list)
    on_save: Callable[[], None] = lambda: None

    def is_due(self, before: int, now: int) -> bool:
        return now == self.due_at

    def save(self, images_seen: int, take: Callable, *, to_be_evaluated: bool) -> str:
        self.clock.takes(self.seconds)
        self.saved.append((images_seen, to_be_evaluated))
        self.on_save()
        return run_folder.checkpoint_uri(self.run, images_seen)

    def once_stored(self, uri: str, action: Callable[[], None]) -> None:
        action()

    def close(self) -> None:
        pass


def evaluation(request: Request, ap: float) -> Evaluation:
    return Evaluation(
        request.checkpoint, request.images_seen, request.epoch, metrics={"AP": ap, "AP50": ap}
    )


class Parts:
    """A worker alone with two batches of 4 images an epoch, the parts that it was built of, and
    the list of what it told.
    """

    def __init__(
        self,
        run: Path,
        clock: Clock,
        *,
        reports: Iterator[StepReport] | None = None,
        evaluate: Callable[[Request, TrainingState], Evaluation] | None = (
            lambda request, state: evaluation(request, 0.5)
        ),
        origin: Origin | None = None,
        device: str = "cpu",
        checkpoints: dict[str, Any] | None = None,
        **training: Any,
    ):
        self.told: list[Event] = []
        given = {"batch_size": 4, "workers": 1, "amp": False, "log_steps": 2, "epochs": 2}
        settings = TrainingConfig.model_validate(given | training)
        ranks = Ranks(0, 1, SimpleNamespace(type=device))
        model = torch.nn.Linear(1, 1)
        sgd = torch.optim.SGD(model.parameters())
        self.state = TrainingState(model, sgd, None, images_per_epoch=8)
        self.checkpoints = Checkpoints(str(run), clock, **(checkpoints or {}))
        measured = Timing(torch.device("cpu"))
        self.reports = StepReports(
            ranks, self.state.progress, allowed=settings.skip_nonfinite, tell=self.told.append
        )

        def batches(epoch: int, remaining: list) -> Iterator[object]:
            for _ in range(2 if remaining else 0):
                clock.takes(1)
                yield object()

        self.worker = Worker(
            run=str(run),
            training=settings,
            ranks=ALONE,
            batches=[4],
            stream=SimpleNamespace(epoch=batches, places=8),
            state=self.state,
            resume=lambda: origin or Origin(),
            start_event=lambda progress: Started(
                1, 1, 4, 4, 1, 1, "float32", progress.images_seen, 16, progress.epoch
            ),
            learning_rate=float,
            step=Step(clock, reports),
            reports=self.reports,
            reporter=Reporter(
                every=settings.log_steps,
                images_per_epoch=8,
                worker=WorkerProcess(0, "10.0.0.1", 42),
                timing=measured,
                system_metrics=dict,
                tell=self.told.append,
                tell_from_every_rank=self.told.append,
            ),
            timing=measured,
            profile=SimpleNamespace(wait=lambda: None),
            checkpoints=self.checkpoints,
            checkpoint_entries={},
            evaluations=EpochEvaluations(
                str(run),
                ranks=ALONE,
                checkpoints=self.checkpoints,
                evaluator=evaluate,
                patience=settings.patience,
                min_improvement=settings.min_improvement,
                tell=self.told.append,
            ),
            first_batches=FirstBatches(tell=self.told.append, wanted=False),
            watchdog=SimpleNamespace(progressed=lambda: None, stop=lambda: None),
            tell=self.told.append,
        )

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]


def test_the_time_of_an_evaluation_does_not_lower_the_throughput(
    tmp_path: Path, clock: Clock
) -> None:
    def evaluate(request: Request, state: TrainingState) -> Evaluation:
        clock.takes(100)
        return evaluation(request, 0.5)

    parts = Parts(tmp_path, clock, evaluate=evaluate, checkpoints={"seconds": 10})
    parts.worker.train()
    steps = parts.of(StepsDone)
    # 8 images: from the first batch on in 3 s (a step, a batch, a step), and after the evaluation
    # in 4 s (a batch, a step, twice).
    assert [event.images_per_second for event in steps] == [pytest.approx(8 / 3), 2.0]
    # One of the 3 s and two of the 4 s were spent waiting; the wait for the very first batch is the
    # start of the job.
    assert [event.data_share for event in steps] == [pytest.approx(1 / 3), 0.5]
    assert [event.rest_share for event in steps] == [pytest.approx(0, abs=1e-9)] * 2
    assert [(event.images_seen, event.step_seconds) for event in parts.of(RankTiming)] == [
        (8, 2.0),
        (16, 2.0),
    ]


@pytest.mark.parametrize("due_at", [4, 8])
def test_a_checkpoint_that_is_due_is_also_taken_at_an_epochs_end(
    tmp_path: Path, clock: Clock, due_at: int
) -> None:
    """The fourth image is in the middle of the first epoch, the eighth its last."""
    parts = Parts(
        tmp_path,
        clock,
        evaluate_every=9,
        checkpoint_every=9,
        checkpoints={"due_at": due_at},
    )
    parts.worker.train()
    # The last epoch is always evaluated.
    assert parts.checkpoints.saved == [(due_at, False), (16, True)]


def test_a_checkpoint_within_an_epoch_reads_no_report_early(tmp_path: Path, clock: Clock) -> None:
    """On a GPU the newest step is still running. If it were not finite, all ranks would have to
    report it together, and only rank 0 saves.
    """
    parts = Parts(tmp_path, clock, device="cuda", checkpoints={"due_at": 4})
    unread: list[int] = []
    parts.checkpoints.on_save = lambda: unread.append(parts.reports.unread)
    parts.worker.train()
    assert unread == [1, 0, 0]


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_updates_are_skipped_up_to_the_number_allowed_and_each_is_a_warning(
    tmp_path: Path, clock: Clock, allowed: int
) -> None:
    """The second and the third of four steps are not finite; the means are of the others alone."""
    reports = iter(
        [
            step_report(),
            step_report(classification=float("nan"), own=(True, False)),
            step_report(classification=float("inf"), own=(False, True)),
            step_report(),
        ]
    )
    parts = Parts(tmp_path, clock, reports=reports, skip_nonfinite=allowed)
    expected = [r"step 2, rank 0: the loss of images \[8\]", r"step 3, rank 0: .* images \[7\]"]
    if allowed < 2:
        with pytest.raises(NonFiniteLoss, match=expected[allowed]):
            parts.worker.train()
    else:
        parts.worker.train()
        assert [event.classification for event in parts.of(StepsDone)] == [0.5, 0.5]
        assert [event.images_seen for event in parts.of(RankTiming)] == [8, 16]
    assert [event.text[:14] for event in parts.of(TrainingWarning)] == [
        "step 2, rank 0",
        "step 3, rank 0",
    ][:allowed]
    assert parts.state.progress.skipped_updates == min(allowed + 1, 2)


def test_storage_that_fails_at_an_epochs_end_does_not_stop_training(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path, clock, evaluate=None, patience=1)

    def away(run: str) -> list[Any]:
        raise PlainError("the storage is away")

    monkeypatch.setattr(evaluations, "read", away)
    parts.worker.train()
    (warning,) = parts.of(TrainingWarning)
    assert warning.text == (
        "early stopping is decided without the newest evaluations, storage did not answer: the"
        " storage is away"
    )
    assert run_folder.read_finished(str(tmp_path)) == run_folder.Finished(16, 2)


@pytest.mark.parametrize("place", ["beside", "between"])
def test_training_stops_where_ap_no_longer_rises(tmp_path: Path, clock: Clock, place: str) -> None:
    run, aps = str(tmp_path), iter([0.25, 0.5, 0.5, 0.25, 0.75])
    parts = Parts(
        tmp_path,
        clock,
        evaluate=(lambda request, state: evaluation(request, next(aps)))
        if place == "between"
        else None,
        patience=2,
        epochs=9,
    )
    if place == "beside":

        def store(uri: str, action: Callable[[], None]) -> None:
            """The driver's evaluator answers the request at once."""
            action()
            evaluations.store(run, evaluation(evaluations.read_request(run, uri), next(aps)))

        parts.checkpoints.once_stored = store
    parts.worker.train()
    # The best was after the second epoch; the third and the fourth are two without a better one.
    reason = "AP has not risen in 2 evaluations, from 0.5000 after epoch 2"
    assert run_folder.read_finished(run) == run_folder.Finished(32, 4, stopped=reason)
    assert parts.told[-1] == StoppedEarly(32, 4, reason)


@pytest.mark.parametrize("known", [False, True])
def test_after_a_resume_at_an_epochs_end_only_what_is_missing_is_requested(
    tmp_path: Path, clock: Clock, known: bool
) -> None:
    """The checkpoint that training resumed from is evaluated only if it was not before."""
    run = str(tmp_path)
    first, second = (run_folder.checkpoint_uri(run, images_seen) for images_seen in (8, 16))
    if known:
        evaluations.store(run, evaluation(Request(first, 8, 1), 0.5))
    parts = Parts(tmp_path, clock, evaluate=None, origin=Origin(first))
    parts.state.progress.images_seen, parts.state.progress.remaining = 8, []
    parts.worker.train()
    assert evaluations.waiting(run) == ([] if known else [first]) + [second]
    assert evaluations.read_request(run, second) == Request(second, 16, 2)


def test_each_step_has_the_rate_of_the_images_seen_before_it(tmp_path: Path, clock: Clock) -> None:
    parts = Parts(tmp_path, clock, log_steps=1)
    parts.worker.train()
    assert [event.learning_rate for event in parts.of(StepsDone)] == [0.0, 4.0, 8.0, 12.0]


def test_the_start_is_told_with_the_progress_that_was_resumed(tmp_path: Path, clock: Clock) -> None:
    parts = Parts(tmp_path, clock)
    parts.state.progress.epoch, parts.state.progress.images_seen = 1, 8
    parts.worker.train()
    assert [(event.images_seen, event.epoch) for event in parts.of(Started)] == [(8, 1)]
