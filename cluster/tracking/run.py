"""One MLflow run: sent by a thread, kept while the store is away; a tracking failure never stops
training.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cluster.errors import UsageError
from cluster.tracking.client import REFUSED, brief, connect, plain_mlflow_errors
from cluster.tracking.config import local_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

SEND_EVERY_S = 2.0
LONGEST_PAUSE_S = 60.0
# MLflow refuses larger batches.
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
# An outage of a day at ten values a second; what comes after it is counted only.
MOST_PENDING_METRICS = 1_000_000


def open_run(
    uri: str,
    *,
    experiment: str,
    storage: str,
    name: str,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Run:
    """Create the MLflow run of a training run, or continue the one with `run_id`; the caller keeps
    `.run_id` beside its checkpoints.

    A run that is gone from the store is replaced by a new one, with a warning. `PlainError` when
    the store does not work, `UsageError` when the experiment was deleted.
    """
    client = connect(uri)
    all_tags = {
        "mlflow.source.name": os.path.basename(sys.argv[0]) or "python",
        "mlflow.source.type": "LOCAL",
        **(tags or {}),
    }
    if parent_run_id is not None:
        all_tags["mlflow.parentRunId"] = parent_run_id
    with plain_mlflow_errors(uri):
        stored_steps = find_run(client, run_id) if run_id is not None else None
        if run_id is not None and stored_steps is not None:
            client.update_run(run_id, status="RUNNING")
            return Run(client, uri=uri, run_id=run_id, stored_steps=stored_steps)
        if run_id is not None:
            print(
                f"warning: the MLflow run {run_id} is gone from {uri}; a new one is started",
                file=sys.stderr,
            )
        artifacts = f"{local_root(storage)}/mlartifacts" if uri.startswith("sqlite:") else None
        created = client.create_run(
            find_experiment(client, experiment, artifacts), run_name=name, tags=all_tags
        )
    return Run(client, uri=uri, run_id=created.info.run_id, stored_steps={})


def attach_run(uri: str, run_id: str) -> Run:
    """Add to a run from another verb (evaluate, register): its status stays, and every value is
    sent as it is.

    `UsageError` when it is not there.
    """
    client = connect(uri)
    with plain_mlflow_errors(uri):
        found = find_run(client, run_id)
    if found is None:
        raise UsageError(
            f"MLflow at {uri} has no run {run_id!r}; give the --tracking.uri that the training run"
            " used"
        )
    return Run(client, uri=uri, run_id=run_id, stored_steps=None)


def find_run(client: MlflowClient, run_id: str) -> dict[str, int] | None:
    """The last step of every metric of the run; None when there is no such run or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in REFUSED:
            return None
        raise
    if found.info.lifecycle_stage == "deleted":
        return None
    return {metric.key: metric.step for metric in found.data.to_proto().metrics}


def find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """The id of the experiment, created when it is new. `artifact_location` None leaves the place
    to the server.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location)
        except MlflowException as error:
            # Two sweeps that start together both find nothing; the second comes too late to create
            # it.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise UsageError(
            f"the MLflow experiment {name!r} was deleted; restore it or choose another"
            " --tracking.experiment"
        )
    return found.experiment_id


class Unavailable(Exception):
    """The store takes nothing now; what was to be sent is kept."""


def metric_name(name: str) -> str:
    """MLflow takes letters, digits and _-. :/ and 250 characters; class names may hold anything."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250].strip("/. ") or "_"


class Run:
    """An open MLflow run. `log_*` and `set_tag` only queue and return at once; a thread sends every
    two seconds.

    While the store fails, one warning is printed, everything is kept in order and sent when it
    answers again. `finish` or `close` must be called: they send what is left and stop the thread.

    `stored_steps` holds the last step of every metric that the run has, and makes each step of a
    metric be sent once, the first value that comes; with None every value is sent.
    """

    def __init__(
        self, client: MlflowClient, *, uri: str, run_id: str, stored_steps: dict[str, int] | None
    ) -> None:
        self.client, self.uri, self.run_id = client, uri, run_id
        self._stored_steps = stored_steps
        self._history: dict[str, set[int]] = {}
        self._metrics: collections.deque[Metric] = collections.deque()
        self._calls: collections.deque[tuple[str, Callable[[], object]]] = collections.deque()
        self._lost = self._refused = 0
        self._warned = False
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._spool = tempfile.mkdtemp(prefix="retinaray-mlflow-")
        self._thread = threading.Thread(target=self._send_until_closed, name="mlflow", daemon=True)
        self._thread.start()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """`step` is the number of images seen."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for name, value in values.items():
            if len(self._metrics) < MOST_PENDING_METRICS:
                self._metrics.append(Metric(metric_name(name), float(value), now, int(step)))
            else:
                self._lost += 1

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Flat names and values. MLflow never changes a parameter: a resumed run's other value
        becomes the tag `changed.<name>`.
        """
        texts = {metric_name(name): str(value)[:6000] for name, value in params.items()}
        self._calls.append(("parameters", lambda: self._send_params(texts)))

    def log_artifact(self, path: str, folder: str | None = None) -> None:
        """A local file, into this folder of the run. It is copied at once, so the caller may delete
        it.
        """
        copy = os.path.join(tempfile.mkdtemp(dir=self._spool), os.path.basename(path))
        shutil.copyfile(path, copy)
        self._calls.append((copy, lambda: self.client.log_artifact(self.run_id, copy, folder)))

    def log_text(self, text: str, file: str) -> None:
        self._calls.append((file, lambda: self.client.log_text(self.run_id, text, file)))

    def set_tag(self, name: str, value: str) -> None:
        self._calls.append(
            (f"tag {name}", lambda: self.client.set_tag(self.run_id, metric_name(name), str(value)))
        )

    def finish(self, status: str, *, patience_s: float = 10.0) -> bool:
        """End the run as FINISHED, FAILED or KILLED (interrupted, resumable) and close it."""
        assert status in ("FINISHED", "FAILED", "KILLED"), status
        self._calls.append(("status", lambda: self.client.set_terminated(self.run_id, status)))
        return self.close(patience_s=patience_s)

    def close(self, *, patience_s: float = 10.0) -> bool:
        """Send what is left, trying again for `patience_s` seconds, and stop. True when MLflow has
        everything; else a warning counts the rest.
        """
        self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + patience_s
        while not self.flush() and time.monotonic() < deadline:
            time.sleep(min(1.0, patience_s))
        values, others = len(self._metrics) + self._lost, len(self._calls) + self._refused
        if values or others:
            print(
                f"warning: MLflow run {self.run_id} lacks {values} metric values and {others} other"
                " entries",
                file=sys.stderr,
            )
        shutil.rmtree(self._spool, ignore_errors=True)
        return not (values or others)

    def flush(self) -> bool:
        """Send what is queued, now. False when the store did not take everything; it stays queued."""
        with self._sending:
            try:
                # The status is queued last and must arrive last: a finished run is complete.
                while self._metrics:
                    batch = [
                        self._metrics[i] for i in range(min(METRICS_PER_CALL, len(self._metrics)))
                    ]
                    self._attempt("metrics", lambda batch=batch: self._send_metrics(batch))
                    for _ in batch:
                        self._metrics.popleft()
                while self._calls:
                    self._attempt(*self._calls[0])
                    self._calls.popleft()
            except Unavailable as error:
                self._warn(
                    f"takes nothing now ({error}); the run goes on, its values are kept and sent"
                    " later"
                )
                return False
        return True

    def _send_until_closed(self) -> None:
        pause = SEND_EVERY_S
        while not self._stop.wait(pause):
            pause = SEND_EVERY_S if self.flush() else min(2 * pause, LONGEST_PAUSE_S)

    def _attempt(self, what: str, call: Callable[[], object]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            call()
        except FileNotFoundError as error:
            self._refuse(what, error)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise Unavailable(brief(error)) from error
            self._refuse(what, error)
        # requests, SQLAlchemy, boto3 and the disk each have errors of their own; none may reach
        # training
        except Exception as error:
            raise Unavailable(brief(error)) from error

    def _refuse(self, what: str, error: Exception) -> None:
        # Repeating a refused call would hold back everything behind it for ever.
        self._refused += 1
        self._warn(f"refused {os.path.basename(what)} ({brief(error)}); the run goes on")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"warning: MLflow at {self.uri} {message}", file=sys.stderr, flush=True)

    def _send_metrics(self, batch: list[Metric]) -> None:
        if self._stored_steps is None:
            self.client.log_batch(self.run_id, metrics=batch)
            return
        fresh: dict[tuple[str, int], Metric] = {}
        for metric in batch:
            if (metric.key, metric.step) not in fresh and not self._is_stored(
                metric.key, metric.step
            ):
                fresh[metric.key, metric.step] = metric
        if fresh:
            self.client.log_batch(self.run_id, metrics=list(fresh.values()))
        for key, step in fresh:
            self._stored_steps[key] = max(step, self._stored_steps.get(key, -1))
            if key in self._history:
                self._history[key].add(step)

    def _is_stored(self, key: str, step: int) -> bool:
        if step > self._stored_steps.get(key, -1):
            return False
        if key not in self._history:
            # Only where steps come again; a set of all steps that were ever sent would grow with
            # the run.
            self._history[key] = {
                metric.step for metric in self.client.get_metric_history(self.run_id, key)
            }
        return step in self._history[key]

    def _send_params(self, texts: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        stored = self.client.get_run(self.run_id).data.params
        new = [Param(name, text) for name, text in texts.items() if name not in stored]
        changed = [
            RunTag(f"changed.{name}", text)
            for name, text in texts.items()
            if stored.get(name, text) != text
        ]
        for i in range(0, len(new), PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=new[i : i + PARAMS_PER_CALL])
        for i in range(0, len(changed), PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, tags=changed[i : i + PARAMS_PER_CALL])
