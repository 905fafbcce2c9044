"""Who proposes the samples of a sweep: Optuna's samplers behind Tune's `Searcher`, or a list."""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from cluster.runs.config import TrainConfig
from tune import config as settings
from tune import space
from tune.dimensions import Choice, Dimension
from tune.space import Sample, Space
from tune.trials import TrialRecord

STARTUP = 4
"""One trial in so many is drawn at random before the searcher learns, from 2 to 10: Optuna's own
10 would be all of a small sweep."""
ATTEMPTS, RANDOM_ATTEMPTS = 20, 1000
"""Draws in a row that are no new setting, after which others are drawn at random: the searchers
return to the best choices, and never propose a bad one. After so many of those, too, the space
counts as tried.
"""


class Proposals(Searcher):
    """Proposes samples to Tune as {"sample": JSON}; it never proposes one twice.

    First those that are `waiting`, then what the `draw` function returns, until that returns None
    or `may_start` says no.
    """

    def __init__(
        self,
        waiting: Iterable[Sample],
        *,
        draw: Callable[[str], Sample | None] | None = None,
        told: Callable[[str, float | None], None] | None = None,
        concurrent: int,
        may_start: Callable[[], bool] = lambda: True,
    ):
        """`draw` gets the Tune id of the trial that it proposes for; `told` that id and the trial's
        AP, None where it has none.
        """
        super().__init__(metric="AP", mode="max")
        self._waiting, self._draw, self._told = deque(waiting), draw, told
        self._concurrent, self._may_start = concurrent, may_start
        self._live: set[str] = set()
        self._scores: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it so that it can restart itself; a sweep goes on from its trial records.
        return {}

    # Tune's type lacks the text that says that nothing more comes.
    def suggest(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        if len(self._live) >= self._concurrent:
            return None
        if not (self._waiting or self._draw) or not self._may_start():
            return Searcher.FINISHED
        sample: Sample | None = None
        if self._waiting:
            sample = self._waiting.popleft()
        elif self._draw is not None:
            sample = self._draw(trial_id)
        if sample is None:
            return Searcher.FINISHED
        self._live.add(trial_id)
        # One text: Tune would take dots and lists in it for its own.
        return {"sample": json.dumps(dict(sample))}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        ap = result.get("AP")
        if ap is not None:
            self._scores[trial_id] = max(ap, self._scores.get(trial_id, ap))

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        self._live.discard(trial_id)
        score = self._scores.pop(trial_id, None)
        if result and result.get("diverged"):
            # Its own values did it: the searcher is to keep away from them.
            score = 0.0
        if self._told is not None:
            self._told(trial_id, score)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing, see `__getstate__`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, see `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `__getstate__`."""


class Sampler:
    """An Optuna study over a space, which knows what earlier trials have shown."""

    def __init__(
        self,
        searched: Space,
        config: TrainConfig,
        *,
        searcher: settings.Searcher,
        trials: int,
        seed: int,
        before: Sequence[TrialRecord],
    ):
        self._space, self._config = searched, config
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            # Multivariate TPE and the Gaussian process are called experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = _sampler(searcher, trials=trials, seed=seed + len(before))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        self._asked: dict[str, optuna.trial.Trial] = {}
        self._proposed: set[str] = set()
        for record in before:
            self.knows(record.sample)
            score = 0.0 if record.diverged else record.ap
            if record.status != "running" and score is not None:
                self._study.add_trial(past_trial(searched, record.sample, score))

    def knows(self, sample: Sample) -> None:
        """Never propose this one."""
        self._proposed.add(_key(sample))

    def draw(self, trial_id: str) -> Sample | None:
        """A sample that was not proposed before; None where the space has no other."""
        for attempt in range(ATTEMPTS + RANDOM_ATTEMPTS):
            if attempt >= ATTEMPTS:
                drawn = self._random.ask()
                self._suggest(drawn)
                self._study.enqueue_trial(drawn.params)
            trial = self._study.ask()
            sample = space.rounded(self._suggest(trial))
            key = _key(sample)
            if key in self._proposed or self._space.valid(self._config, sample) is not None:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            self._proposed.add(key)
            self._asked[trial_id] = trial
            return sample
        return None

    def told(self, trial_id: str, score: float | None) -> None:
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        if score is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, score)

    def _suggest(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        for dimension in self._space.dimensions:
            if dimension.applies({**self._space.configured, **sample}):
                sample |= _fields_of(dimension, _ask(trial, dimension))
        return sample


def past_trial(searched: Space, sample: Sample, score: float) -> optuna.trial.FrozenTrial:
    """A trial that has ended, as a study knows it: a value for each dimension that applies."""
    # A space that grew has fields that an earlier trial lacks: it had their configured values.
    whole = searched.completed(sample)
    active = [one for one in searched.dimensions if set(one.fields) <= whole.keys()]
    return create_trial(
        params={one.name: _value_of(one, whole) for one in active},
        distributions={one.name: _distribution(one) for one in active},
        value=score,
    )


def startup_trials(trials: int) -> int:
    """Trials drawn at random before TPE and the Gaussian process learn from results."""
    return max(2, min(10, trials // STARTUP))


def _sampler(searcher: settings.Searcher, *, trials: int, seed: int) -> optuna.samplers.BaseSampler:
    if searcher == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    startup = startup_trials(trials)
    if searcher == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=startup,
        # gamma and alpha depend on each other, so they are drawn together; what has a condition is
        # a group of its own.
        multivariate=True,
        group=True,
        # Trials that run count as bad ones, so that parallel trials differ.
        constant_liar=True,
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    values = dimension.values
    if isinstance(values, Choice):
        return CategoricalDistribution([_text(row) for row in values.values])
    if values.integer:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _ask(trial: optuna.trial.Trial, dimension: Dimension) -> Any:
    distribution = _distribution(dimension)
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(dimension.name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        low, high, log = distribution.low, distribution.high, distribution.log
        return trial.suggest_int(dimension.name, low, high, log=log)
    assert isinstance(distribution, FloatDistribution)
    low, high, log = distribution.low, distribution.high, distribution.log
    return trial.suggest_float(dimension.name, low, high, log=log)


def _fields_of(dimension: Dimension, value: Any) -> dict[str, Any]:
    """The fields of a sample that an Optuna value stands for."""
    row = json.loads(value) if isinstance(dimension.values, Choice) else [value]
    return dict(zip(dimension.fields, row, strict=True))


def _value_of(dimension: Dimension, sample: Sample) -> Any:
    """The Optuna value that stands for these fields of a sample."""
    own = tuple(sample[field] for field in dimension.fields)
    values = dimension.values
    # 1/9 is configured, 0.1111 is a choice.
    return _text(values.nearest(own)) if isinstance(values, Choice) else own[0]


def _text(choice: Sequence[Any]) -> str:
    return json.dumps(list(choice))


def _key(sample: Sample) -> str:
    return json.dumps(dict(space.rounded(sample)), sort_keys=True)
