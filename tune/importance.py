"""How much of the differences in AP each searched dimension explains: functional ANOVA over a
random forest (Hutter, Hoos, Leyton-Brown, An Efficient Approach for Assessing Hyperparameter
Importance, ICML 2014), as Optuna has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from tune.proposals import past_trial
from tune.space import Space
from tune.trials import TrialRecord

FEWEST_TRIALS = 8
"""With an AP. A forest on fewer tells chance, not importance."""
MOST_TRIALS = 400
"""More are thinned out evenly. CPU time with 6 dimensions: 1.5 s for 200 trials, 4 s for 400, 21 s
for 1,000.
"""


@dataclass(frozen=True)
class Importance:
    """Shares by name of a dimension, the largest first; or why there are none."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """0..1, of the variance that single dimensions explain; their sum is 1."""
    not_judged: tuple[str, ...] = ()
    """Dimensions that some trials lack, because their conditions do not hold there."""
    missing: str = ""
    """Why there are no shares, as a sentence."""


def importance(searched: Space, records: Sequence[TrialRecord]) -> Importance:
    """Of the trials that have an AP; of one that was stopped early it is the best until then."""
    scored = [record for record in records if record.ap is not None]
    if len(scored) < FEWEST_TRIALS:
        return Importance(
            missing=(
                f"Too few trials have an AP to tell: {len(scored)}, at least"
                f" {FEWEST_TRIALS} are needed."
            )
        )
    if len({record.ap for record in scored}) == 1:
        return Importance(missing="All trials have the same AP, so nothing is more important.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    for record in scored[:: -(-len(scored) // MOST_TRIALS)]:
        assert record.ap is not None
        study.add_trial(past_trial(searched, record.sample, record.ap))
    everywhere = set.intersection(*(set(trial.params) for trial in study.trials))
    not_judged = tuple(one.name for one in searched.dimensions if one.name not in everywhere)
    if not everywhere:
        return Importance(not_judged=not_judged, missing="No dimension is searched in all trials.")
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return Importance({name: float(share) for name, share in shares.items()}, not_judged)
