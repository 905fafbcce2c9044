"""Where trials and the driver meet: a trial asks whether it goes on, the driver answers. One actor
for the whole sweep.
"""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.runs.evaluations import Evaluation
from tune.trials import Point


class Board:
    """The actor. Every answer is kept, so that a trial that is started again gets it again."""

    def __init__(self) -> None:
        self._posted: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._answers: dict[tuple[str, int], asyncio.Future[str | None]] = {}

    async def post(self, trial: str, result: dict[str, Any]) -> None:
        """An evaluation, for the process that speaks with Tune."""
        self._queue(trial).put_nowait(result)

    async def take(self, trial: str, wait_s: float) -> dict[str, Any] | None:
        """The next evaluation that was posted; None where none comes within `wait_s`."""
        queue = self._queue(trial)
        if not queue.empty():
            # A wait of no length would take nothing.
            return queue.get_nowait()
        try:
            return await asyncio.wait_for(queue.get(), wait_s)
        except TimeoutError:
            return None

    async def answer(self, trial: str, images_seen: int, verdict: str | None) -> None:
        future = self._answer(trial, images_seen)
        if not future.done():
            future.set_result(verdict)

    async def verdict(self, trial: str, images_seen: int) -> str | None:
        """Why the trial ends; None: it goes on. Waits for the driver."""
        return await asyncio.shield(self._answer(trial, images_seen))

    def _queue(self, trial: str) -> asyncio.Queue[dict[str, Any]]:
        return self._posted.setdefault(trial, asyncio.Queue())

    def _answer(self, trial: str, images_seen: int) -> asyncio.Future[str | None]:
        key = (trial, images_seen)
        if key not in self._answers:
            self._answers[key] = asyncio.get_running_loop().create_future()
        return self._answers[key]


def open_board() -> Any:
    """The handle of a new board, on this process's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Each waiting trial has a call of its own; the default allows a thousand.
    actor: Any = ray.remote(Board)
    return actor.options(num_cpus=0, scheduling_strategy=here, max_concurrency=20_000).remote()


class PostingJudge:
    """The judge of a trial with several workers, on rank 0: posts the evaluation to the process
    around the trial, which reports it to Tune, and waits for the verdict.
    """

    def __init__(self, board: Any, trial: str):
        self._board, self._trial = board, trial

    def __call__(self, evaluation: Evaluation) -> str | None:
        import ray

        result = result_of(evaluation)
        ray.get(self._board.post.remote(self._trial, result))
        return ray.get(self._board.verdict.remote(self._trial, evaluation.images_seen))


def result_of(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as Tune gets it."""
    point = Point(
        evaluation.images_seen,
        evaluation.epoch,
        evaluation.ap,
        evaluation.metrics.get("AP50"),
        evaluation.ms_per_image,
    )
    return point.to_json()
