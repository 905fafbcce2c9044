"""Whether the winner of a sweep is better than the given configuration. A search takes the best of
many, so its winner was lucky too: the best settings and the given one are trained once more, at
full length, with another seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.runs import evaluations
from cluster.runs.package_files import build_package, read_package
from cluster.scoring.detect import detect_set
from cluster.scoring.truths import read_truths
from cluster.shards.classes import match_classes
from cluster.storage import files, record_files
from cluster.storage.scratch import scratch_folder
from cluster.storage.uris import join
from detector import resampling, scores
from detector.coco_matching import Matches, match
from tune import space
from tune.config import CONFIRMED
from tune.plan import SEED, Plan
from tune.proposals import Proposals
from tune.search import Search
from tune.space import Sample
from tune.trials import TrialRecord, ranked

CONFIRMATION = "confirm.json"
VERSION = 1


@dataclass(frozen=True)
class Confirmation:
    """The winner and the given configuration, each trained once more."""

    winner: str
    """Name of the trial of the search whose setting won: the best mean of both trainings. It may be
    that of the given configuration."""
    aps: Mapping[str, tuple[float | None, float | None]]
    """Name of a trial of the search -> AP there, and AP with the other seed."""
    given_ap: float | None
    """AP of the given configuration with the other seed."""
    seed: int
    """The other seed."""
    verdict: str
    """The paired difference of the best other setting and the given configuration, in words."""
    difference: float | None = None
    """AP of the best other setting minus that of the given configuration, with the other seed."""
    interval: tuple[float, float] | None = None
    """95 % interval of it, by a bootstrap over the images of data.val."""

    def lines(self) -> list[str]:
        """For a terminal."""
        again = [
            f"         {name}: AP {scores.shown(first)}, with seed {self.seed}"
            f" {scores.shown(second)}"
            for name, (first, second) in self.aps.items()
        ]
        given = f"         given: with seed {self.seed} AP {scores.shown(self.given_ap)}"
        return [f"confirm  {self.verdict}", *again, given]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "winner": self.winner,
            "aps": {name: list(both) for name, both in self.aps.items()},
            "given_AP": self.given_ap,
            "seed": self.seed,
            "verdict": self.verdict,
            "difference": self.difference,
            "interval": None if self.interval is None else list(self.interval),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Confirmation:
        interval = stored["interval"]
        return cls(
            winner=stored["winner"],
            aps={name: (first, second) for name, (first, second) in stored["aps"].items()},
            given_ap=stored["given_AP"],
            seed=stored["seed"],
            verdict=stored["verdict"],
            difference=stored["difference"],
            interval=None if interval is None else (interval[0], interval[1]),
        )


def read_confirmation(plan: Plan, records: Sequence[TrialRecord]) -> Confirmation | None:
    """That of these records, best first; None where there is none, or one of other winners."""
    uri = join(plan.uri, CONFIRMATION)
    stored = (
        record_files.read(uri, Confirmation.from_json, remedy="delete it and repeat the command")
        if files.exists(uri)
        else None
    )
    top = [record.trial for record in _top(plan, records)]
    return stored if stored is not None and list(stored.aps) == top else None


def confirm(plan: Plan, trials: Search) -> Confirmation:
    """Train the top settings and the given one again, as far as that is not done, and compare.
    confirm.json keeps the result.
    """
    top = _top(plan, ranked(plan.counted(list(trials.records.values()))))
    samples = [_again(plan, record.sample) for record in top]
    given = _again(plan, {})
    ended = [
        record.sample
        for record in trials.records.values()
        if record.role == "confirm" and record.status not in ("running", "failed")
    ]
    waiting = [sample for sample in [*samples, given] if sample not in ended]
    if waiting:
        trials.console.say(
            f"the best {len(top)} settings and the given one are trained again with seed"
            f" {given[SEED]}, at full length"
        )
        proposals = Proposals(waiting, concurrent=trials.concurrent)
        trials.run(
            proposals,
            role="confirm",
            stopping="none",
            total=len(samples) + 1,
            counts=plan.counts,
        )
    trained = {
        space.trial_name(record.sample, record.epochs): record
        for record in trials.records.values()
        if record.role == "confirm"
    }
    of_top = [trained[space.trial_name(sample, plan.epochs)] for sample in samples]
    of_given = trained[space.trial_name(given, plan.epochs)]
    result = _compare(plan, trials, top, of_top, of_given)
    files.write_json(join(plan.uri, CONFIRMATION), result.to_json())
    return result


def _top(plan: Plan, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best settings that are not the given one, each once."""
    known = [_without_seed(plan, {})]
    top = list[TrialRecord]()
    for record in records:
        setting = _without_seed(plan, record.sample)
        if record.ap is not None and setting not in known:
            known.append(setting)
            top.append(record)
    return top[:CONFIRMED]


def _other_seed(plan: Plan) -> int:
    """One that no trial of the search has."""
    return plan.config.training.seed + plan.sweep.seeds


def _without_seed(plan: Plan, sample: Sample) -> Any:
    config = space.apply(plan.config, sample).model_dump()
    config["training"].pop("seed")
    return config


def _again(plan: Plan, sample: Sample) -> dict[str, Any]:
    return {**space.rounded(sample), SEED: _other_seed(plan)}


def _compare(
    plan: Plan,
    trials: Search,
    top: Sequence[TrialRecord],
    of_top: Sequence[TrialRecord],
    of_given: TrialRecord,
) -> Confirmation:
    aps = {first.trial: (first.ap, second.ap) for first, second in zip(top, of_top, strict=True)}
    seed = _other_seed(plan)
    if not aps:
        verdict = "the given setting is the best of the search"
        return Confirmation("the given setting", {}, of_given.ap, seed, verdict)
    best, again = max(zip(top, of_top, strict=True), key=_mean)
    own = _given_trial(plan, trials)
    given_wins = own is not None and _mean((own, of_given)) >= _mean((best, again))
    winner = own if own is not None and given_wins else best
    if again.ap is None or of_given.ap is None:
        lost = again if again.ap is None else of_given
        verdict = f"not compared, {lost.trial} has no result: {lost.reason or lost.stop}"
        return Confirmation(winner.trial, aps, of_given.ap, seed, verdict)
    if plan.inputs.val_set.num_rows < 2:
        verdict = "not compared, data.val has a single image"
        return Confirmation(winner.trial, aps, of_given.ap, seed, verdict)
    matches = [_matches(plan, trials, record) for record in (of_given, again)]
    found = resampling.paired_difference(*matches, seed=plan.sweep.seed)
    assert found is not None, "both have an AP"
    verdict = f"{best.trial} against the given setting: {resampling.said(found)}"
    low, high = found.interval.low, found.interval.high
    if given_wins or low <= 0:
        verdict += "; keep what you have"
    return Confirmation(winner.trial, aps, of_given.ap, seed, verdict, found.estimate, (low, high))


def _given_trial(plan: Plan, trials: Search) -> TrialRecord | None:
    """The trial of the search that trained the given configuration."""
    configured = _without_seed(plan, {})
    counted = plan.counted(list(trials.records.values()))
    return next((one for one in counted if _without_seed(plan, one.sample) == configured), None)


def _mean(pair: tuple[TrialRecord, TrialRecord]) -> float:
    """Over both trainings; one without a result counts as 0."""
    return sum(record.ap or 0.0 for record in pair) / 2


def _matches(plan: Plan, trials: Search, record: TrialRecord) -> Matches:
    """The detections of a trial's best checkpoint on data.val, matched with its objects."""
    best = evaluations.best_checkpoint(record.run)
    sweep, val_set = plan.sweep, plan.inputs.val_set
    with scratch_folder("confirm") as folder:
        build_package(best.checkpoint, folder, weights=best.weights)
        package = read_package(folder)
    names = plan.inputs.train_set.class_names
    classes = match_classes(
        val_set.class_names, names, subject=f"data.val {val_set.uri}", of="data.train", remedy=""
    )
    detections = detect_set(
        package,
        val_set.uri,
        workers=trials.concurrent * sweep.workers,
        cpus_per_worker=sweep.cpus_per_worker,
        gpus_per_worker=sweep.gpus_per_worker,
    )
    return match(read_truths(val_set, classes), detections, classes.names)
