"""Metrics, parameters and tags on their way to one MLflow run: in batches, and each step of a
metric at most once. What MLflow refuses costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from cluster.tracking.client import PERMANENT, first_line
from cluster.tracking.names import mlflow_names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

# MLflow refuses larger batches, and cuts longer texts without a mark.
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
LONGEST_PARAM, LONGEST_TAG = 6000, 8000
_FAULT_OF_AN_ENTRY = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""Of `PERMANENT`: the others (no such run, no permission) are the same for every entry."""
Entry = TypeVar("Entry")
Stored = TypeVar("Stored")


def shortened(text: str, most: int) -> str:
    """`text`, or as much of it as MLflow takes, with a mark that says how long it was."""
    if len(text) <= most:
        return text
    mark = f"... ({len(text)} characters)"
    return text[: most - len(mark)] + mark


def metric_label(name: str, step: object) -> str:
    return f"metric {name} at step {step}"


@dataclass
class Refused:
    """What MLflow has refused for good: each entry once, also where its batch is sent again."""

    metrics: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    example: str = ""
    """The first one, with the reason."""

    def add(self, label: str, error: Exception, *, is_metric: bool = False) -> None:
        (self.metrics if is_metric else self.others).add(label)
        self.example = self.example or f"{label} ({first_line(error)})"


class Sender:
    """Sends to one run. `stored_steps` is the last step of every metric that the run has: a step of
    a metric that is sent again is dropped, the first value stays. With None every value is sent.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        stored_steps: Mapping[str, int] | None,
        refused: Refused,
    ) -> None:
        self._client, self._run_id, self._refused = client, run_id, refused
        self._last_steps = None if stored_steps is None else dict(stored_steps)
        self._history: dict[str, set[int]] = {}

    def send_metrics(self, batch: Sequence[Metric]) -> None:
        """At most `METRICS_PER_CALL`."""
        last_steps, new = self._last_steps, batch
        if last_steps is not None:
            first = {(metric.key, metric.step): metric for metric in reversed(batch)}
            new = [m for (key, step), m in first.items() if not self._is_stored(key, step)]
        self._send(
            new,
            lambda metrics: self._client.log_batch(self._run_id, metrics=metrics),
            lambda metric, error: self._refused.add(
                metric_label(metric.key, metric.step), error, is_metric=True
            ),
        )
        if last_steps is None:
            return
        for metric in new:
            last_steps[metric.key] = max(metric.step, last_steps.get(metric.key, -1))
            if metric.key in self._history:
                self._history[metric.key].add(metric.step)

    def _is_stored(self, key: str, step: int) -> bool:
        assert self._last_steps is not None
        if step > self._last_steps.get(key, -1):
            return False
        if key not in self._history:
            # Loaded only for a metric whose steps are sent again: the set of all steps that were
            # ever sent would grow with the run.
            history = self._read(lambda: self._client.get_metric_history(self._run_id, key), [])
            self._history[key] = {metric.step for metric in history}
        return step in self._history[key]

    def send_params(self, texts: Mapping[str, str]) -> None:
        """MLflow never changes a parameter: another value becomes the tag `changed.<name>`."""
        from mlflow.entities import Param, RunTag

        stored = self._read(lambda: self._client.get_run(self._run_id).data.params, {})
        new = [Param(name, text) for name, text in texts.items() if name not in stored]
        changed = {
            f"changed.{name}": text
            for name, text in texts.items()
            if stored.get(name, text) != text
        }
        tags = [RunTag(name, changed[given]) for given, name in mlflow_names(changed).items()]
        for i in range(0, len(new), PARAMS_PER_CALL):
            self._send(
                new[i : i + PARAMS_PER_CALL],
                lambda params: self._client.log_batch(self._run_id, params=params),
                lambda param, error: self._refused.add(f"parameter {param.key}", error),
            )
        for i in range(0, len(tags), PARAMS_PER_CALL):
            self._send(
                tags[i : i + PARAMS_PER_CALL],
                lambda some: self._client.log_batch(self._run_id, tags=some),
                lambda tag, error: self._refused.add(f"tag {tag.key}", error),
            )

    def _read(self, read: Callable[[], Stored], nothing: Stored) -> Stored:
        """What the run has; `nothing` where there is no such run any more: then MLflow refuses, and
        we count, each entry that is sent.
        """
        from mlflow.exceptions import MlflowException

        try:
            return read()
        except MlflowException as error:
            if error.error_code not in PERMANENT:
                raise
            return nothing

    def _send(
        self,
        entries: Sequence[Entry],
        send: Callable[[Sequence[Entry]], object],
        refuse: Callable[[Entry, MlflowException], None],
    ) -> None:
        """Send the entries together, and where MLflow refuses them each half by itself, down to the
        entries at fault. Raises where the store is unavailable.
        """
        from mlflow.exceptions import MlflowException

        if not entries:
            return
        try:
            send(entries)
        except MlflowException as error:
            if error.error_code not in PERMANENT:
                raise
            divisible = error.error_code in _FAULT_OF_AN_ENTRY and len(entries) > 1
            if not divisible or self._is_deleted():
                for entry in entries:
                    refuse(entry, error)
                return
            middle = len(entries) // 2
            self._send(entries[:middle], send, refuse)
            self._send(entries[middle:], send, refuse)

    def _is_deleted(self) -> bool:
        """MLflow gives the code of a wrong value to a run in its trash too."""
        return self._client.get_run(self._run_id).info.lifecycle_stage == "deleted"
