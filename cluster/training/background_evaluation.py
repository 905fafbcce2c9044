"""Evaluates checkpoints beside training: one after the other in the order of images seen, by Ray
actors with resources of their own.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from cluster.compute.resources import reading_worker, task_options
from cluster.compute.session import fetch
from cluster.errors import PlainError
from cluster.runs import evaluations
from cluster.runs.config import DetectionShare
from cluster.runs.evaluations import Evaluation, Request, Weights
from cluster.runs.events import EvaluationDone, EvaluationFailed, EvaluationStarted, Tell
from cluster.storage.scratch import scratch_folder

LOOK_EVERY_S = 5.0
"""Seconds between two looks for checkpoints that wait, each of which lists a folder."""


class Evaluator(Protocol):
    """Evaluates one checkpoint at a time."""

    def evaluate(self, request: Request) -> Evaluation: ...

    def grow(self, share: DetectionShare) -> None:
        """Use these resources from now on, if they are more."""
        ...

    def kill(self) -> None:
        """End the evaluation under way."""
        ...


class BackgroundEvaluation:
    """Runs in the driver. It reads from the run's folder what waits, so a driver that is killed
    leaves its evaluations to the next one.

    While it is entered, a thread evaluates beside training. An evaluation that fails is retried
    once, then stored as failed; training is not affected. `finish` evaluates what still waits when
    training is over.
    """

    def __init__(self, run: str, evaluator: Evaluator, *, tell: Tell):
        self._run, self._evaluator, self._tell = run, evaluator, tell
        self._stopped = threading.Event()
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="evaluator")

    def __enter__(self) -> BackgroundEvaluation:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Wait for the evaluation under way, unless training failed: then it waits for the next
        start of the run.
        """
        self._abandoned = kind is not None
        self._stopped.set()
        if self._abandoned:
            self._evaluator.kill()
        self._thread.join(timeout=10 if self._abandoned else None)

    def is_alive(self) -> bool:
        """Whether the thread beside training still runs."""
        return self._thread.is_alive()

    def finish(self, share: DetectionShare) -> None:
        """Evaluate what still waits, with the resources that the workers have freed if those are
        more. `PlainError` if the newest checkpoint cannot be evaluated; then it still waits.
        """
        self._evaluator.grow(share)
        finished = evaluations.read(self._run)
        if finished and finished[-1].error is not None:
            evaluations.store_request(self._run, finished[-1].request)
        while queue := evaluations.waiting(self._run):
            self._evaluate_first(queue, must_succeed=len(queue) == 1)

    def _work(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_S):
            try:
                while not self._stopped.is_set() and (queue := evaluations.waiting(self._run)):
                    self._evaluate_first(queue, must_succeed=False)
            except Exception as error:  # of storage, say; what waits still waits
                if not self._abandoned:
                    self._tell(
                        EvaluationFailed(
                            "evaluating beside training", _reason(error), "it is retried"
                        )
                    )

    def _evaluate_first(self, queue: list[str], *, must_succeed: bool) -> None:
        """Raises a failure if it `must_succeed`, else stores it in place of the result."""
        request = evaluations.read_request(self._run, queue[0])
        waiting = len(queue) - 1
        self._tell(EvaluationStarted(request.images_seen, request.epoch, waiting))
        try:
            evaluation = self._evaluate(request)
        except Exception as error:  # whatever happened to a task or its machine
            if self._abandoned:
                raise
            reason = _reason(error)
            if must_succeed:
                kind = type(error) if isinstance(error, PlainError) else PlainError
                raise kind(
                    f"the evaluation of {request.checkpoint} failed: {reason}; training is"
                    " finished, the same command evaluates it again"
                ) from error
            failed = Evaluation(
                request.checkpoint, request.images_seen, request.epoch, error=reason
            )
            evaluations.store(self._run, failed)
            self._tell_failure(request, error, "the checkpoint has no AP")
            return
        evaluations.store(self._run, evaluation)
        self._tell(EvaluationDone(evaluation))

    def _evaluate(self, request: Request) -> Evaluation:
        try:
            return self._evaluator.evaluate(request)
        # A machine that was taken away, a connection that broke: a retry may succeed.
        except Exception as error:
            if self._abandoned:
                raise
            self._tell_failure(request, error, "it is retried once")
            return self._evaluator.evaluate(request)

    def _tell_failure(self, request: Request, error: Exception, consequence: str) -> None:
        subject = f"evaluation of the checkpoint at {request.images_seen} images"
        self._tell(EvaluationFailed(subject, _reason(error), consequence))


class ActorEvaluator:
    """Evaluates each checkpoint with a Ray actor of its own, which can be killed at any moment. Not
    with a task: in Ray 2.60 `ray.cancel` of a task that is just beginning can end the driver
    ("Check failed: Tried to complete task that was not pending").
    """

    def __init__(self, data: str, *, weights: Weights, share: DetectionShare):
        """`data` is the URI of the shard set, `share` what `detect_set` takes of the machines."""
        self._data, self._weights, self.share = data, weights, share
        self.running: Any = None
        """Handle of the actor that evaluates now."""

    def evaluate(self, request: Request) -> Evaluation:
        import ray

        booking = reading_worker(self.share["cpus_per_worker"], self.share["gpus_per_worker"])
        self.running = ray.remote(_EvaluationActor).options(**task_options(booking)).remote()
        try:
            return fetch(
                self.running.evaluate.remote(request, self._weights, self._data, self.share)
            )
        finally:
            self.running = None

    def grow(self, share: DetectionShare) -> None:
        self.share = max(self.share, share, key=_size)

    def kill(self) -> None:
        if (running := self.running) is not None:
            import ray

            ray.kill(running)


def _size(share: DetectionShare) -> tuple[float, float]:
    workers = share["workers"]
    return workers * share["gpus_per_worker"], workers * share["cpus_per_worker"]


class _EvaluationActor:
    def evaluate(
        self, request: Request, weights: Weights, data: str, share: DetectionShare
    ) -> Evaluation:
        return evaluate(request, weights, data, share)


def evaluate(request: Request, weights: Weights, data: str, share: DetectionShare) -> Evaluation:
    """Evaluate a checkpoint on a shard set. This process computes one of the shares itself, so it
    books only one.
    """
    from cluster.runs.package_files import build_package, read_classes, read_package
    from cluster.scoring.detect import detect_set
    from cluster.scoring.evaluate import evaluate_checkpoint
    from cluster.scoring.truths import read_frequencies, read_truths
    from cluster.shards.index import open_shard_set
    from cluster.training.preflight import match_val

    with scratch_folder("evaluation") as folder:
        build_package(request.checkpoint, folder, weights=weights)
        package, model_classes = read_package(folder), read_classes(folder)
    shard_set = open_shard_set(data)
    classes = match_val(shard_set, [category.name for category in model_classes])
    detections = detect_set(package, data, here=True, **share)
    return evaluate_checkpoint(
        request,
        weights,
        detections,
        read_truths(shard_set, classes),
        classes.names,
        frequencies=read_frequencies(shard_set, classes),
    )


def _reason(error: BaseException) -> str:
    """One line: a plain message as it is, else the last line, in which Ray repeats what the task
    raised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0] if isinstance(error, PlainError) else lines[-1]
