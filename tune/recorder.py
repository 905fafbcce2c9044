"""What a sweep records of its trials, in the driver: trial.json, an MLflow run under the sweep's
run, and lines on the terminal. It answers each trial whether it goes on.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial

from cluster.compute.resources import shown, total
from cluster.errors import DataError, PlainError, UsageError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.storage.uris import join
from tune import space
from tune.config import CONFIRMED, SweepConfig
from tune.console import Console
from tune.space import Sample
from tune.stopping import EarlyStopping
from tune.tracked import TrackedTrials
from tune.trials import Point, Role, Status, TrialRecord, ranked, trial_config, write_record

_KINDS = {UsageError.exit_code: UsageError, DataError.exit_code: DataError}


def sample_of(trial: Trial) -> Sample:
    """The sample that a Tune trial trains."""
    return json.loads(trial.config["sample"])


class Wait:
    """How long nothing has gone on, to be told after `first_s` and then every `again_s`."""

    def __init__(
        self,
        *,
        first_s: float = 20.0,
        again_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._first_s, self._again_s, self._clock = first_s, again_s, clock
        self._since: float | None = None
        self._next = 0.0

    def reset(self) -> None:
        self._since = None

    def told_now(self) -> float | None:
        """The seconds of the wait, where they are to be told now."""
        now = self._clock()
        if self._since is None:
            self._since, self._next = now, now + self._first_s
        if now < self._next:
            return None
        self._next = now + self._again_s
        return now - self._since


class Ending(Stopper):
    """Ends Tune's loop as soon as there is a `reason`."""

    def __init__(self) -> None:
        self.reason: PlainError | None = None

    def __getstate__(self) -> dict[str, Any]:
        # See `Recorder`.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.reason is not None


def alike_error(record: TrialRecord, count: int) -> PlainError:
    """What a sweep ends with whose first `count` trials failed alike: with the exit code that a
    training has which fails so.
    """
    kind = _KINDS.get(record.exit_code, PlainError)
    return kind(f"sweep: its first {count} trials failed alike: {record.reason}")


class Recorder(Callback):
    """Keeps `records`, by name, up to date; those of earlier commands are among them."""

    def __init__(
        self,
        config: TrainConfig,
        sweep: SweepConfig,
        uri: str,
        *,
        records: dict[str, TrialRecord],
        role: Role,
        counts: Callable[[TrialRecord], bool],
        name_of: Callable[[Trial], str],
        stopping: EarlyStopping,
        board: Any,
        tracked: TrackedTrials,
        console: Console,
        ending: Ending,
    ):
        self._config, self._sweep, self._uri = config, sweep, uri
        self._role: Role = role
        self._counts, self._name_of = counts, name_of
        self._stopping, self._board = stopping, board
        self._tracked, self._console = tracked, console
        self.records = records
        self._started: set[str] = set()
        self._wait = Wait()
        self._reasons: Counter[str] = Counter()
        self._ending = ending

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks so that it can restart itself. Our restart uses trial.json, and
        # open connections cannot be pickled.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        config = trial_config(self._config, self._sweep, self._uri, sample_of(trial))
        before = self.records.get(config.name)
        if before is None:
            before = TrialRecord(
                trial=config.name,
                run=config.run_uri,
                number=len(self.records),
                sample=sample_of(trial),
                epochs=config.training.epochs,
                role=self._role,
            )
        if before.is_out_of_time:
            # The time has ended it; now it continues.
            files.delete_file(join(before.run, run_folder.FINISHED))
            before = replace(before, stop="")
        begun = replace(before, status="running", reason="", exit_code=0, diverged=False)
        # A confirmation of an earlier command may be a trial of a larger grid now.
        self._write(replace(begun, role=self._role))
        if config.name in self._started:
            self._console.say(f"{config.name} is started again, its process or node was gone")
        else:
            self._started.add(config.name)
            done = f"; {before.epochs_done} epochs are done" if before.curve else ""
            self._console.say(f"{config.name} started: {space.shown(before.sample)}{done}")
            self._tracked.open(config)

    def on_step_begin(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Tune's loop turns: say it where no trial runs because none has room."""
        waits = any(trial.status == Trial.PENDING for trial in trials)
        if not waits or any(trial.status == Trial.RUNNING for trial in trials):
            self._wait.reset()
        elif (seconds := self._wait.told_now()) is not None:
            self._console.say(
                f"no trial has started for {seconds:.0f} s: Ray starts its process, or the cluster"
                f" has no room for {shown(total(self._sweep.processes))}"
            )

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **_: Any
    ) -> None:
        if "failed" in result:
            return
        name, point = self._name_of(trial), Point.from_json(result)
        verdict, before = self._stopping.verdict(name, point), self.records[name]
        record = before.with_point(point)
        # First what a restart needs, then the answer.
        self._write(replace(record, stop=verdict or ""))
        self._board.answer.remote(name, point.images_seen, verdict)
        if point not in before.curve:
            # A trial that is started again tells its last evaluation once more.
            self._console.say(f"{name} epoch {point.epoch} of {record.epochs}: AP {point.shown}")

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        result, name = trial.last_result or {}, self._name_of(trial)
        if "failed" in result:
            # Tune's own copy of a result has only what can be printed.
            self._fail(name, result["failed"], result["exit_code"], diverged=result["diverged"])
        else:
            self._end(name, "stopped early" if self.records[name].stop else "done")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._fail(self._name_of(trial), _last_line(trial.error_file), 1)

    def _fail(self, name: str, reason: str, exit_code: int, *, diverged: bool = False) -> None:
        record = replace(self.records[name], reason=reason, exit_code=exit_code, diverged=diverged)
        self.records[name] = record
        self._end(name, "failed")
        # Without what differs from trial to trial: names, numbers, folders.
        alike = re.sub(r"trial-\w+|\S*/\S*|\d+", "", reason)
        self._reasons[alike] += 1
        has_result = any(one.ap is not None for one in self.shown())
        if self._reasons[alike] >= self._sweep.same_failures and not has_result:
            self._ending.reason = alike_error(record, self._reasons[alike])

    def _end(self, name: str, status: Status) -> None:
        record = self._write(replace(self.records[name], status=status))
        ap = "" if record.best is None else f", best AP {record.best.shown}"
        why = f": {record.reason or record.stop}" if record.reason or record.stop else ""
        self._console.say(f"{name} {status} after epoch {record.epochs_done}{ap}{why}")
        self._tracked.ended(record)
        self._prune()
        self._console.show(self.shown())

    def shown(self) -> list[TrialRecord]:
        """The trials of this search, or of this confirmation: not those that are kept apart."""
        return [
            one
            for one in self.records.values()
            if one.role == self._role and (self._role == "confirm" or self._counts(one))
        ]

    def _prune(self) -> None:
        """Delete the checkpoints of trials that are not among the best. What they were evaluated
        to stays.
        """
        ended = [
            one
            for one in self.records.values()
            if self._counts(one)
            and one.status in ("done", "stopped early")
            and not one.is_out_of_time
        ]
        # Those that may be trained again, and the given one, are compared with what they were.
        keep = max(self._sweep.keep, CONFIRMED + 1 if self._sweep.confirm else 0)
        for record in ranked(ended)[keep:]:
            if not record.pruned:
                files.delete_folder(join(record.run, run_folder.CHECKPOINTS))
                self._write(replace(record, pruned=True))

    def _write(self, record: TrialRecord) -> TrialRecord:
        self.records[record.trial] = record
        write_record(record)
        return record


def _last_line(path: str | None) -> str:
    """The error itself, of the file in which Tune has put the trial's traceback in this process."""
    if path is None or not os.path.exists(path):
        return "its process ended without a message"
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1][:300] if lines else "its process ended without a message"
