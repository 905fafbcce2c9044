from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import DataError, PlainError, UsageError
from cluster.runs.config import TrainConfig
from tune.config import SweepConfig
from tune.recorder import Ending, Recorder, Wait
from tune.trials import OUT_OF_TIME, TrialRecord, read_records, trial_config, write_record

CONFIG = TrainConfig.model_validate({"name": "tiny", "data": {"train": "/t", "val": "/v"}})


class Driver:
    """A recorder with stand-ins for what stands beside it: the board, MLflow and the terminal."""

    def __init__(self, folder: Path, verdicts: dict[int, str] | None = None, **changes: Any):
        self.uri, self.lines, self.answers, self.ended = str(folder), [], [], []
        self.sweep = SweepConfig(**{"epochs": 3, **changes})
        answer = SimpleNamespace(remote=lambda *told: self.answers.append(told))
        self.ending = Ending()
        self.recorder = Recorder(
            CONFIG,
            self.sweep,
            self.uri,
            records={record.trial: record for record in read_records(self.uri)},
            role="search",
            counts=lambda record: record.role == "search",
            name_of=lambda trial: self.name(json.loads(trial.config["sample"])["loss.gamma"]),
            # Only what the recorder calls.
            stopping=SimpleNamespace(  # type: ignore[arg-type]
                verdict=lambda name, point: (verdicts or {}).get(point.epoch)
            ),
            board=SimpleNamespace(answer=answer),
            tracked=SimpleNamespace(  # type: ignore[arg-type]
                open=lambda config: None, ended=self.ended.append
            ),
            console=SimpleNamespace(say=self.lines.append, show=lambda records: None),  # type: ignore[arg-type]
            ending=self.ending,
        )

    def name(self, gamma: float) -> str:
        return trial_config(CONFIG, self.sweep, self.uri, {"loss.gamma": gamma}).name

    def start(self, gamma: float) -> Any:
        sample = {"sample": json.dumps({"loss.gamma": gamma})}
        trial: Any = SimpleNamespace(trial_id="x", config=sample, last_result={}, error_file=None)
        self.recorder.on_trial_start(1, [trial], trial)
        return trial

    def result(self, trial: Any, **values: Any) -> None:
        trial.last_result = values
        self.recorder.on_trial_result(1, [trial], trial, values)

    def point(self, trial: Any, epoch: int, ap: float | None) -> None:
        self.result(trial, images_seen=8 * epoch, epoch=epoch, AP=ap, AP50=ap)

    def end(self, trial: Any) -> None:
        self.recorder.on_trial_complete(1, [trial], trial)

    def train(self, gamma: float, *aps: float | None) -> None:
        trial = self.start(gamma)
        for epoch, ap in enumerate(aps, 1):
            self.point(trial, epoch, ap)
        self.end(trial)

    def fail(self, gamma: float, reason: str, exit_code: int = 1) -> None:
        trial = self.start(gamma)
        self.result(trial, failed=reason, exit_code=exit_code, diverged=False)
        self.end(trial)

    def records(self) -> dict[str, TrialRecord]:
        return {record.trial: record for record in read_records(self.uri)}


def test_the_record_is_stored_before_the_trial_gets_its_answer(tmp_path: Path) -> None:
    driver = Driver(tmp_path, {2: "bad"})
    trial, name = driver.start(2.0), driver.name(2.0)
    driver.point(trial, 1, 0.1)
    assert driver.answers == [(name, 8, None)]
    stored: list[str] = []
    driver.recorder._board.answer.remote = lambda *told: stored.append(driver.records()[name].stop)
    driver.point(trial, 2, 0.3)
    # A driver that is killed now finds the verdict when it goes on.
    assert stored == ["bad"]
    driver.end(trial)
    (record,) = driver.ended
    assert (record.status, record.ap, record.epochs_done) == ("stopped early", 0.3, 2)
    assert driver.lines == [
        f"{name} started: loss.gamma 2",
        f"{name} epoch 1 of 3: AP 0.1000",
        f"{name} epoch 2 of 3: AP 0.3000",
        f"{name} stopped early after epoch 2, best AP 0.3000: bad",
    ]


@pytest.mark.parametrize("nothing", [-1.0, float("nan"), None])
def test_a_trial_without_a_score_shows_a_dash(tmp_path: Path, nothing: float | None) -> None:
    driver = Driver(tmp_path)
    driver.train(2.0, nothing, nothing, nothing)
    name = driver.name(2.0)
    assert (driver.records()[name].status, driver.records()[name].ap) == ("done", None)
    assert driver.lines[1:] == [
        *(f"{name} epoch {epoch} of 3: AP -" for epoch in (1, 2, 3)),
        f"{name} done after epoch 3",
    ]


def test_a_trial_that_goes_on_keeps_its_number_and_its_curve(tmp_path: Path) -> None:
    first = Driver(tmp_path)
    first.train(1.0, 0.1, 0.2, 0.3)
    first.point(first.start(2.0), 1, 0.4)
    second = Driver(tmp_path)
    trial = second.start(2.0)
    assert second.lines == [f"{second.name(2.0)} started: loss.gamma 2; 1 epochs are done"]
    second.point(trial, 1, 0.4)
    assert len(second.lines) == 1
    second.point(trial, 2, 0.5)
    assert second.lines[1] == f"{second.name(2.0)} epoch 2 of 3: AP 0.5000"
    record = second.records()[second.name(2.0)]
    assert (record.number, [point.ap for point in record.curve]) == (1, [0.4, 0.5])
    second.start(2.0)
    assert second.lines[-1].endswith("is started again, its process or node was gone")


def test_checkpoints_of_all_but_the_best_trials_are_deleted(tmp_path: Path) -> None:
    driver = Driver(tmp_path, keep=2)
    gammas = (0.0, 1.0, 2.0, 3.0)
    for gamma, ap in zip(gammas, (0.2, 0.4, 0.1, 0.3), strict=True):
        checkpoints = tmp_path / "runs" / driver.name(gamma) / "checkpoints"
        (checkpoints / "images-8").mkdir(parents=True)
        driver.train(gamma, ap, ap, ap)
    kept = [(tmp_path / "runs" / driver.name(g) / "checkpoints").exists() for g in gammas]
    assert kept == [False, True, False, True]
    assert [driver.records()[driver.name(g)].pruned for g in gammas] == [True, False, True, False]
    # What they were evaluated to stays.
    assert driver.records()[driver.name(2.0)].ap == 0.1


@pytest.mark.parametrize(("exit_code", "kind"), [(1, PlainError), (2, UsageError), (3, DataError)])
def test_trials_that_all_fail_alike_end_the_sweep_with_their_exit_code(
    tmp_path: Path, exit_code: int, kind: type[PlainError]
) -> None:
    driver = Driver(tmp_path, same_failures=3)
    for gamma in (1.0, 2.0):
        driver.fail(gamma, f"{driver.name(gamma)}: no room in /tmp/x{gamma} for 5 MB", exit_code)
    assert not driver.ending.stop_all()
    driver.fail(3.0, f"{driver.name(3.0)}: no room in /tmp/x for 7 MB", exit_code)
    assert driver.ending.stop_all() and type(driver.ending.reason) is kind
    assert "its first 3 trials failed alike" in str(driver.ending.reason)


def test_a_sweep_with_a_result_goes_on_however_many_trials_fail(tmp_path: Path) -> None:
    driver = Driver(tmp_path, same_failures=2)
    driver.train(0.0, 0.1)
    for gamma in (1.0, 2.0, 3.0):
        driver.fail(gamma, "no room")
    assert not driver.ending.stop_all()
    assert [record.status for record in driver.records().values()].count("failed") == 3


def test_trials_that_fail_in_different_ways_do_not_end_the_sweep(tmp_path: Path) -> None:
    driver = Driver(tmp_path, same_failures=2)
    for gamma, reason in ((1.0, "no room"), (2.0, "no network"), (3.0, "no luck")):
        driver.fail(gamma, reason)
    assert not driver.ending.stop_all()


def test_a_wait_for_room_is_said_after_a_while_and_then_now_and_again(tmp_path: Path) -> None:
    driver, now = Driver(tmp_path), [0.0]
    driver.recorder._wait = Wait(first_s=20, again_s=60, clock=lambda: now[0])
    pending, running = SimpleNamespace(status="PENDING"), SimpleNamespace(status="RUNNING")

    def step(seconds: float, *trials: Any) -> int:
        now[0] = seconds
        driver.recorder.on_step_begin(1, list(trials))
        return len(driver.lines)

    assert [step(s, pending) for s in (0, 19, 20, 21, 79, 80)] == [0, 0, 1, 1, 1, 2]
    assert driver.lines[0] == (
        "no trial has started for 20 s: Ray starts its process, or the cluster has no room for 0.75"
        " CPUs"
    )
    # While one runs, the others wait as they should.
    assert [step(s, pending, running) for s in (200, 300)] == [2, 2]
    assert [step(s, pending) for s in (310, 329, 330)] == [2, 2, 3]


def test_trials_that_are_kept_apart_are_neither_ranked_nor_shown(tmp_path: Path) -> None:
    """A trial of another length had a higher AP: it must not cost the best one its checkpoints."""
    before = Driver(tmp_path, keep=1, epochs=2)
    before.train(0.0, 0.8, 0.9)
    driver = Driver(tmp_path, keep=1)
    driver.recorder._counts = lambda record: record.epochs == 3
    checkpoints = tmp_path / "runs" / driver.name(1.0) / "checkpoints"
    (checkpoints / "images-8").mkdir(parents=True)
    shown: list[list[TrialRecord]] = []
    driver.recorder._console.show = shown.append  # type: ignore[method-assign]
    driver.train(1.0, 0.1, 0.2, 0.3)
    assert checkpoints.exists() and not driver.records()[driver.name(1.0)].pruned
    assert [[record.trial for record in records] for records in shown] == [[driver.name(1.0)]]


def test_a_trial_that_the_time_has_ended_goes_on_with_another_command(tmp_path: Path) -> None:
    driver = Driver(tmp_path, {1: f"{OUT_OF_TIME} after epoch 1"}, keep=1)
    driver.train(1.0, 0.1)
    record = driver.records()[driver.name(1.0)]
    assert record.is_out_of_time
    finished = Path(record.run, "finished.json")
    finished.write_text("{}")
    again = Driver(tmp_path)
    trial = again.start(1.0)
    # Without it the training would be taken for finished.
    assert not finished.exists() and again.records()[record.trial].stop == ""
    again.point(trial, 2, 0.4)
    again.point(trial, 3, 0.5)
    again.end(trial)
    assert again.records()[record.trial].status == "done"


def test_a_confirmation_becomes_a_trial_of_a_larger_grid(tmp_path: Path) -> None:
    before = Driver(tmp_path)
    before.train(1.0, 0.1, 0.2, 0.3)
    record = before.records()[before.name(1.0)]
    write_record(replace(record, role="confirm"))
    again = Driver(tmp_path)
    trial = again.start(1.0)
    for point in record.curve:
        again.point(trial, point.epoch, point.ap)
    again.end(trial)
    assert again.records() == before.records() | {record.trial: record}
