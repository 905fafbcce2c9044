"""What a sweep records of its trials, in the driver: trial.json, an MLflow run under the sweep's
run, and a line on the terminal for each result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from ray.tune import Callback
from ray.tune.experiment import Trial

from cluster.errors import PlainError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.tracking.run import Run, open_run, read_record
from detector import scores
from detector.scores import score
from tune import space
from tune.space import SweepConfig
from tune.trials import Status, TrialRecord, trial_config, write_record

Say = Callable[[str], None]


class Recorder(Callback):
    """`parent` is the sweep's MLflow run; without one the trials have no MLflow runs."""

    def __init__(
        self,
        config: TrainConfig,
        sweep: SweepConfig,
        uri: str,
        parent: Run | None,
        experiment: str,
        say: Say,
    ):
        self._config, self._sweep, self._uri = config, sweep, uri
        self._parent, self._experiment, self._say = parent, experiment, say
        self._epochs = sweep.epochs or config.training.epochs
        self._runs: dict[str, Run] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks so that it can restart itself. Our restart uses trial.json, and
        # open connections cannot be pickled.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        config = trial_config(self._config, self._sweep, self._uri, trial.config)
        self._record(trial, "running")
        if trial.trial_id in self._runs:
            return
        sample = space.rounded(trial.config)
        self._say(f"{config.name} started: {space.shown(sample)}")
        run = self._open_run(config)
        if run is None:
            return
        self._runs[trial.trial_id] = run
        run.log_params(sample)

    def _open_run(self, config: TrainConfig) -> Run | None:
        if self._parent is None:
            return None
        before = read_record(config.run_uri)
        try:
            run = open_run(
                self._parent.uri,
                experiment=self._experiment,
                name=config.name,
                run_id=before and before.run_id,
                parent_run_id=self._parent.run_id,
                tags={"run_folder": config.run_uri},
            )
        except PlainError as error:
            self._say(f"warning: {config.name} is not tracked: {error}")
            return None
        record = run_folder.TrackingRecord(run.uri, self._experiment, run.run_id)
        run_folder.write_tracking(config.run_uri, record)
        return run

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        self._say(
            f"{space.trial_name(trial.config)} epoch {result['epoch']} of {self._epochs}: AP"
            f" {scores.shown(score(result['AP']))}  AP50 {scores.shown(score(result['AP50']))}"
        )
        if trial.trial_id in self._runs:
            values = {
                f"val/{name}": value
                for name, stored in result.items()
                if name.startswith("AP") and (value := score(stored)) is not None
            }
            self._runs[trial.trial_id].log_metrics(values, result["images_seen"])

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        epoch = (trial.last_result or {}).get("epoch")
        self._finish(trial, "done" if epoch == self._epochs else "stopped early", "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._finish(trial, "failed", "FAILED", reason=_last_line(trial.error_file))

    def _finish(
        self,
        trial: Trial,
        status: Status,
        mlflow_status: Literal["FINISHED", "FAILED"],
        *,
        reason: str = "",
    ) -> None:
        record = self._record(trial, status, reason=reason)
        ap = "" if record.ap is None else f": AP {record.ap:.4f}"
        why = f" ({reason})" if reason else ""
        self._say(f"{record.trial} {status} after {record.epochs} epochs{ap}{why}")
        if trial.trial_id in self._runs:
            self._runs[trial.trial_id].finish(mlflow_status)

    def _record(self, trial: Trial, status: Status, *, reason: str = "") -> TrialRecord:
        result = trial.last_result or {}
        run = trial_config(self._config, self._sweep, self._uri, trial.config).run_uri
        record = TrialRecord(
            trial=os.path.basename(run),
            status=status,
            ap=score(result.get("AP")),
            ap50=score(result.get("AP50")),
            epochs=result.get("epoch", 0),
            sample=space.rounded(trial.config),
            proposed=dict(trial.config),
            run=run,
            reason=reason,
        )
        write_record(record)
        return record


def _last_line(path: str | None) -> str:
    """The error itself, of the file in which Tune has put the trial's traceback in this process."""
    if path is None or not os.path.exists(path):
        return "its process ended without a message"
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1][:300] if lines else "its process ended without a message"
