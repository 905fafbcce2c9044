"""Checkpoints scored beside training: one after the other, by Ray actors with a share of their own,
in the order of images seen.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import Any

from cluster.compute.resources import reading_worker, task_options
from cluster.compute.session import fetch
from cluster.errors import PlainError
from cluster.runs import evaluations
from cluster.runs.evaluations import Evaluation, Request, Weights

LOOK_EVERY_S = 5.0
"""Seconds between two looks at what waits, one listing of a folder each."""


class Evaluator:
    """Runs in the driver. What waits is read from the run's folder, so evaluations that a killed
    driver left behind are made by the next one.

    While it is entered a thread evaluates beside training, and a failing evaluation costs that
    evaluation: it is tried once more, then counted as missing. `finish` evaluates what still waits
    when training is over. `share` is what `detect_set` takes of the machines.
    """

    def __init__(
        self,
        run: str,
        data: str,
        *,
        weights: Weights,
        share: dict[str, Any],
        tell: Callable[..., None],
    ):
        self.run, self.data, self.weights, self.share, self.tell = run, data, weights, share, tell
        self.stopped = threading.Event()
        self.abandoned = False
        self.running: Any = None

    def __enter__(self) -> Evaluator:
        self.thread = threading.Thread(target=self.work, daemon=True, name="evaluator")
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """The evaluation under way is waited for, unless training failed: then it waits for the
        next start of the run.
        """
        self.abandoned = kind is not None
        self.stopped.set()
        if self.abandoned and (scorer := self.running) is not None:
            import ray

            ray.kill(scorer)
        self.thread.join(timeout=10 if self.abandoned else None)

    def work(self) -> None:
        while not self.stopped.wait(LOOK_EVERY_S):
            try:
                while not self.stopped.is_set() and (queue := evaluations.waiting(self.run)):
                    self.evaluate(queue, must=False)
            except (
                Exception
            ) as error:  # of the storage, say; what waits still waits, and training goes on
                if not self.abandoned:
                    self.tell(
                        "evaluation_failed",
                        what="evaluating beside training",
                        reason=reason_of(error),
                        then="tried again",
                    )

    def finish(self, share: dict[str, Any]) -> None:
        """Evaluate what still waits, in the share that the workers have left where that is larger.
        The newest checkpoint must come to numbers.

        Raises `PlainError` where it does not; then it still waits.
        """
        self.share = max(
            self.share,
            share,
            key=lambda one: (
                one["workers"] * one["gpus_per_worker"],
                one["workers"] * one["cpus_per_worker"],
            ),
        )
        finished = evaluations.read(self.run)
        if finished and finished[-1].error is not None:
            evaluations.store_request(self.run, finished[-1].request)
        while queue := evaluations.waiting(self.run):
            self.evaluate(queue, must=len(queue) == 1)

    def evaluate(self, queue: list[str], *, must: bool) -> None:
        """The first of what waits. Where it `must` come to numbers its failure is raised, else stored
        as its error.
        """
        request = evaluations.read_request(self.run, queue[0])
        self.tell(
            "evaluating",
            images_seen=request.images_seen,
            epoch=request.epoch,
            waiting=len(queue) - 1,
        )
        try:
            evaluation = self.score(request)
        except Exception as error:  # whatever a task or its machine came to
            if self.abandoned:
                raise
            if must:
                kind = type(error) if isinstance(error, PlainError) else PlainError
                raise kind(
                    f"the evaluation of {request.checkpoint} failed: {reason_of(error)}; training"
                    " is finished, the same command evaluates it again"
                ) from error
            evaluations.store(
                self.run,
                Evaluation(
                    request.checkpoint,
                    request.images_seen,
                    request.epoch,
                    error=reason_of(error),
                ),
            )
            self.failed(request, error, then="it stays without AP")
            return
        evaluations.store(self.run, evaluation)
        self.tell("evaluation", evaluation=evaluation)

    def score(self, request: Request) -> Evaluation:
        try:
            return self.start(request)
        # a machine that was taken away, a connection that broke: the same again may pass
        except Exception as error:
            if self.abandoned:
                raise
            self.failed(request, error, then="tried once more")
            return self.start(request)

    def start(self, request: Request) -> Evaluation:
        import ray

        booking = reading_worker(self.share["cpus_per_worker"], self.share["gpus_per_worker"])
        self.running = ray.remote(Scorer).options(**task_options(booking)).remote()
        try:
            return fetch(self.running.evaluate.remote(request, self.weights, self.data, self.share))
        finally:
            self.running = None

    def failed(self, request: Request, error: Exception, *, then: str) -> None:
        self.tell(
            "evaluation_failed",
            what=f"evaluation of the checkpoint at {request.images_seen} images",
            reason=reason_of(error),
            then=then,
        )


class Scorer:
    """`evaluate` as an actor, one for each evaluation. It can be killed at any moment: in Ray 2.60
    `ray.cancel` of a task that is just beginning can end the driver ("Check failed: Tried to
    complete task that was not pending").
    """

    def evaluate(
        self, request: Request, weights: Weights, data: str, share: dict[str, Any]
    ) -> Evaluation:
        return evaluate(request, weights, data, share)


def evaluate(request: Request, weights: Weights, data: str, share: dict[str, Any]) -> Evaluation:
    """Evaluate a checkpoint on a shard set. One of the shares runs in this process, so that its
    actor books one share and no more.
    """
    from cluster.runs.package_files import build_package, read_package
    from cluster.scoring.detect import detect_set
    from cluster.scoring.evaluate import evaluate_checkpoint
    from cluster.scoring.truths import read_truths
    from cluster.shards.index import open_shard_set

    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        build_package(request.checkpoint, folder, weights=weights)
        package = read_package(folder)
    detections = detect_set(package, data, here=True, **share)
    shard_set = open_shard_set(data)
    return evaluate_checkpoint(
        request, weights, detections, read_truths(shard_set), shard_set.class_names
    )


def reason_of(error: BaseException) -> str:
    """One line: a plain message as it is, else the last line, in which Ray repeats what the task
    raised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        lines[0]
        if isinstance(error, PlainError) and lines
        else lines[-1]
        if lines
        else type(error).__name__
    )
