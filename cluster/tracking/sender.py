"""Metrics and parameters on their way to one MLflow run: in batches, and each step of a metric at
most once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# MLflow refuses larger batches.
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100


def metric_name(name: str) -> str:
    """MLflow takes 250 letters, digits and _-. :/ at most; class names may contain anything."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250].strip("/. ") or "_"


class Sender:
    """Sends to one run. `stored_steps` is the last step of every metric that the run has: a step of
    a metric that is sent again is dropped, the first value stays. With None every value is sent.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, stored_steps: Mapping[str, int] | None
    ) -> None:
        self._client, self._run_id = client, run_id
        self._last_steps = None if stored_steps is None else dict(stored_steps)
        self._history: dict[str, set[int]] = {}

    def send_metrics(self, batch: Sequence[Metric]) -> None:
        """At most `METRICS_PER_CALL`."""
        if self._last_steps is None:
            self._client.log_batch(self._run_id, metrics=batch)
            return
        new: dict[tuple[str, int], Metric] = {}
        for metric in batch:
            key, step = metric.key, metric.step
            if (key, step) not in new and not self._is_stored(self._last_steps, key, step):
                new[key, step] = metric
        if new:
            self._client.log_batch(self._run_id, metrics=list(new.values()))
        for key, step in new:
            self._last_steps[key] = max(step, self._last_steps.get(key, -1))
            if key in self._history:
                self._history[key].add(step)

    def _is_stored(self, last_steps: Mapping[str, int], key: str, step: int) -> bool:
        if step > last_steps.get(key, -1):
            return False
        if key not in self._history:
            # Loaded only for a metric whose steps are sent again: the set of all steps that were
            # ever sent would grow with the run.
            self._history[key] = {
                metric.step for metric in self._client.get_metric_history(self._run_id, key)
            }
        return step in self._history[key]

    def send_params(self, texts: Mapping[str, str]) -> None:
        """MLflow never changes a parameter: another value becomes the tag `changed.<name>`."""
        from mlflow.entities import Param, RunTag

        stored = self._client.get_run(self._run_id).data.params
        new = [Param(name, text) for name, text in texts.items() if name not in stored]
        changed = [
            RunTag(f"changed.{name}", text)
            for name, text in texts.items()
            if stored.get(name, text) != text
        ]
        for i in range(0, len(new), PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=new[i : i + PARAMS_PER_CALL])
        for i in range(0, len(changed), PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, tags=changed[i : i + PARAMS_PER_CALL])
