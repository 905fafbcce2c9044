"""A training at a pace that a test can follow on any machine: each step takes a second more, and
each checkpoint is in storage before the next step.

Without it the small trainings of the tests are over within a second or two, on a fast machine
before the driver has heard of their first checkpoint.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cluster.training import launch


def paced() -> Any:
    """A callback for Ray Train."""

    def slow_down() -> None:
        import time

        from cluster.training.worker import Worker

        step, save = Worker.step, Worker.save

        def slow_step(worker: Worker, *args: Any, **kwargs: Any) -> Any:
            time.sleep(1)
            return step(worker, *args, **kwargs)

        def save_and_wait(worker: Worker, **kwargs: Any) -> str:
            uri = save(worker, **kwargs)
            if worker.checkpoints.writing is not None:
                worker.checkpoints.writing.result()
                worker.checkpoints.network.submit(lambda: None).result()
            return uri

        Worker.step, Worker.save = slow_step, save_and_wait

    # Defined in here, so that it is sent with its code: Ray's processes do not know this module.
    class Paced(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: Any) -> None:
            worker_group.execute(slow_down)

    return Paced()


def pace_launches() -> None:
    """In a driver that a test starts: every training of this process."""
    unpaced = launch.launch
    launch.launch = lambda config, **options: unpaced(config, **options, callbacks=[paced()])
