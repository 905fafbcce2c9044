"""One MLflow run for a training run, also across retries and resubmissions. A thread sends; values
wait while the store is unavailable; a tracking failure never stops training.
"""

from __future__ import annotations

import collections
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from cluster.errors import UsageError, redacted
from cluster.runs import run_folder
from cluster.runs.run_folder import TrackingRecord
from cluster.storage import uris
from cluster.storage.scratch import make_scratch_folder
from cluster.tracking import embedded
from cluster.tracking.client import PERMANENT, connect, first_line, plain_mlflow_errors
from cluster.tracking.names import mlflow_names
from cluster.tracking.preflight import deleted_experiment
from cluster.tracking.sender import (
    LONGEST_PARAM,
    LONGEST_TAG,
    METRICS_PER_CALL,
    Refused,
    Sender,
    metric_label,
    shortened,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

SEND_EVERY_S = 2.0
LONGEST_PAUSE_S = 60.0
# An outage of a day at ten values a second; later values are only counted.
MOST_PENDING_METRICS = 1_000_000
Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended; KILLED: interrupted, it can be resumed."""


def open_run(
    uri: str,
    *,
    experiment: str,
    name: str,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Run:
    """Create the MLflow run of a training run, or continue the one with `run_id`; the caller stores
    `.run_id` beside its checkpoints.

    A run that was deleted from the store is replaced by a new one, with a warning. `PlainError`
    when the store does not work, `UsageError` when the experiment was deleted.
    """
    client = connect(uri, creates=True)
    all_tags = {
        "mlflow.source.name": os.path.basename(sys.argv[0]) or "python",
        "mlflow.source.type": "LOCAL",
        **(tags or {}),
    }
    if parent_run_id is not None:
        all_tags["mlflow.parentRunId"] = parent_run_id
    with plain_mlflow_errors(uri):
        stored_steps = _last_steps(client, run_id) if run_id is not None else None
        if run_id is not None and stored_steps is not None:
            client.update_run(run_id, status="RUNNING")
            return Run(client, uri=uri, run_id=run_id, stored_steps=stored_steps)
        if run_id is not None:
            print(
                f"warning: MLflow at {uri} has no run {run_id} any more; a new one is started",
                file=sys.stderr,
            )
        path = embedded.path_of(uri)
        artifacts = None if path is None else embedded.artifact_location(path)
        created = client.create_run(
            _experiment_id(client, uri, experiment, artifacts), run_name=name, tags=all_tags
        )
    return Run(client, uri=uri, run_id=created.info.run_id, stored_steps={})


def read_record(folder: str) -> TrackingRecord | None:
    """tracking.json in the folder of a run or a sweep, with the store that has the run now."""
    record = run_folder.read_tracking(folder)
    if record is None or uris.is_remote(folder):
        return record
    return replace(record, uri=embedded.store_of_run(record.uri, record.run_id, folder))


def attach_run(uri: str, run_id: str) -> Run:
    """Add to a run from another verb (evaluate, register): its status does not change, and every
    value is sent.

    `UsageError` when the store has no such run.
    """
    client = connect(uri)
    with plain_mlflow_errors(uri):
        stored_steps = _last_steps(client, run_id)
    if stored_steps is None:
        raise UsageError(
            f"MLflow at {uri} has no run {run_id!r}, or has it in its trash; restore it with"
            f" MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow runs restore --run-id {run_id}, or"
            " repeat the training's command, which records the run anew"
        )
    return Run(client, uri=uri, run_id=run_id, stored_steps=None)


def _last_steps(client: MlflowClient, run_id: str) -> dict[str, int] | None:
    """The last step of every metric of the run; None when the run does not exist or is deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in PERMANENT:
            return None
        raise
    if run.info.lifecycle_stage == "deleted":
        return None
    # The client's own `metrics` has the values without their steps.
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def _experiment_id(client: MlflowClient, uri: str, name: str, artifact_location: str | None) -> str:
    """The id of the experiment, which is created when it is new. With `artifact_location` None the
    server chooses where the artifacts are.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location)
        except MlflowException as error:
            # Two sweeps that start together both find no experiment; the second one is too late to
            # create it.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise deleted_experiment(uri, name, experiment.experiment_id)
    return experiment.experiment_id


def _int64(step: int) -> int:
    """MLflow's stores answer a larger one as if they had failed, and a retry would never end."""
    if not -(2**63) <= int(step) < 2**63:
        raise ValueError("a step has 64 bits")
    return int(step)


class Unavailable(Exception):
    """The store is unavailable now; the values stay queued."""


class Run:
    """An open MLflow run. `log_*` and `set_tag` only queue and return at once; a thread sends every
    two seconds.

    While the store fails, one warning is printed; everything stays queued in order and is sent when
    the store answers again. `finish` or `close` must be called: they send the rest and stop the
    thread. `stored_steps`: see `Sender`.
    """

    def __init__(
        self, client: MlflowClient, *, uri: str, run_id: str, stored_steps: dict[str, int] | None
    ) -> None:
        self.client, self.uri, self.run_id = client, uri, run_id
        self._refused = Refused()
        self._sender = Sender(client, run_id, stored_steps, self._refused)
        self._metrics: collections.deque[Metric] = collections.deque()
        self._calls: collections.deque[tuple[str, Callable[[], object]]] = collections.deque()
        self._lost = 0
        self._warned = False
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._spool = make_scratch_folder("mlflow")
        self._thread = threading.Thread(target=self._send_until_closed, name="mlflow", daemon=True)
        self._thread.start()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """`step` is the number of images seen."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for name, key in mlflow_names(values).items():
            if len(self._metrics) >= MOST_PENDING_METRICS:
                self._lost += 1
                continue
            try:
                metric = Metric(key, float(values[name]), now, _int64(step))
            except (TypeError, ValueError, OverflowError) as error:
                self._refused.add(metric_label(key, step), error, is_metric=True)
            else:
                self._metrics.append(metric)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Flat names and values. MLflow never changes a parameter: another value of a resumed run
        becomes the tag `changed.<name>`.
        """
        texts = {
            key: shortened(redacted(str(params[name])), LONGEST_PARAM)
            for name, key in mlflow_names(params).items()
        }
        self._calls.append(("parameters", lambda: self._sender.send_params(texts)))

    def log_artifact(self, path: str, folder: str | None = None) -> None:
        """A local file, into this folder of the run. It is copied at once, so the caller may delete
        it.
        """
        copy = os.path.join(tempfile.mkdtemp(dir=self._spool), os.path.basename(path))
        shutil.copyfile(path, copy)
        self._queue_file(copy, folder)

    def log_bytes(self, content: bytes, file: str) -> None:
        """`file` is the path of the artifact, with slashes."""
        folder, name = os.path.split(file)
        copy = os.path.join(tempfile.mkdtemp(dir=self._spool), name)
        with open(copy, "wb") as written:
            written.write(content)
        self._queue_file(copy, folder or None)

    def log_text(self, text: str, file: str) -> None:
        told = redacted(text)
        self._calls.append((file, lambda: self.client.log_text(self.run_id, told, file)))

    def set_tag(self, name: str, value: str) -> None:
        key, text = mlflow_names([name])[name], shortened(redacted(str(value)), LONGEST_TAG)
        self._calls.append((f"tag {name}", lambda: self.client.set_tag(self.run_id, key, text)))

    def _queue_file(self, copy: str, folder: str | None) -> None:
        name = "/".join([*([folder] if folder else []), os.path.basename(copy)])
        self._calls.append((name, lambda: self.client.log_artifact(self.run_id, copy, folder)))

    def finish(self, status: Status, *, patience_s: float = 10.0) -> bool:
        """Set the status of the run and close it, see `close`."""
        self._calls.append(("status", lambda: self.client.set_terminated(self.run_id, status)))
        return self.close(patience_s=patience_s)

    def close(self, *, patience_s: float = 10.0) -> bool:
        """Send the rest, with retries for `patience_s` seconds, and stop. True when MLflow has
        everything; else a warning counts what is missing.
        """
        self._stop.set()
        self._thread.join()
        self.send(patience_s=patience_s)
        refused = self._refused
        values = len(self._metrics) + self._lost + len(refused.metrics)
        others = len(self._calls) + len(refused.others)
        if values or others:
            example = f"; it refused {refused.example}" if refused.example else ""
            print(
                f"warning: MLflow run {self.run_id} lacks {values} metric values and {others} other"
                f" entries{example}",
                file=sys.stderr,
            )
        shutil.rmtree(self._spool, ignore_errors=True)
        return not (values or others)

    def send(self, *, patience_s: float) -> bool:
        """Send the queue, with retries for `patience_s` seconds. Whether the store took all."""
        deadline = time.monotonic() + patience_s
        while not (sent := self.flush()) and time.monotonic() < deadline:
            time.sleep(min(1.0, patience_s))
        return sent

    def flush(self) -> bool:
        """Send the queue now. False when the store did not take all; the rest stays queued."""
        with self._sending:
            try:
                # The status is queued last and must be sent last: a finished run is complete.
                while self._metrics:
                    count = min(METRICS_PER_CALL, len(self._metrics))
                    batch = [self._metrics[i] for i in range(count)]
                    self._attempt("metrics", lambda batch=batch: self._sender.send_metrics(batch))
                    for _ in batch:
                        self._metrics.popleft()
                while self._calls:
                    self._attempt(*self._calls[0])
                    self._calls.popleft()
            except Unavailable as error:
                self._warn(
                    f"is unavailable ({error}); the run continues, its values are sent later"
                )
                return False
            finally:
                if self._refused.example:
                    self._warn(f"refused {self._refused.example}; the run continues")
        return True

    def _send_until_closed(self) -> None:
        pause = SEND_EVERY_S
        while not self._stop.wait(pause):
            pause = SEND_EVERY_S if self.flush() else min(2 * pause, LONGEST_PAUSE_S)

    def _attempt(self, entry: str, call: Callable[[], object]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            call()
        # A retry would be refused again, and would block the entries behind it for ever.
        except FileNotFoundError as error:
            self._refused.add(entry, error)
        except MlflowException as error:
            if error.error_code not in PERMANENT:
                raise Unavailable(first_line(error)) from error
            self._refused.add(entry, error)
        # requests, SQLAlchemy, boto3 and the disk each have errors of their own; none may reach
        # training.
        except Exception as error:
            raise Unavailable(first_line(error)) from error

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"warning: MLflow at {self.uri} {message}", file=sys.stderr, flush=True)
