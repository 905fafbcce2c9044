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
    images_seen: int = 0
    """The length at which AP is compared."""
    trials: int = 0
    """How many reached it."""
    not_judged: tuple[str, ...] = ()
    """Dimensions that some trials lack, because their conditions do not hold there."""
    missing: str = ""
    """Why there are no shares, as a sentence."""


def importance(searched: Space, records: Sequence[TrialRecord]) -> Importance:
    """Of the trials that have an AP."""
    images, aps = compared(records)
    if len(aps) < FEWEST_TRIALS:
        return Importance(
            missing=(
                f"Too few trials have an AP to tell: {len(aps)}, at least {FEWEST_TRIALS} are"
                " needed."
            )
        )
    if len({ap for _, ap in aps}) == 1:
        return Importance(missing="All trials have the same AP, so nothing is more important.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    for record, ap in aps[:: -(-len(aps) // MOST_TRIALS)]:
        study.add_trial(past_trial(searched, record.sample, ap))
    everywhere = set.intersection(*(set(trial.params) for trial in study.trials))
    not_judged = tuple(one.name for one in searched.dimensions if one.name not in everywhere)
    if not everywhere:
        return Importance(not_judged=not_judged, missing="No dimension is searched in all trials.")
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    shares = {name: float(share) for name, share in found.items()}
    return Importance(shares, images, len(aps), not_judged)


def compared(records: Sequence[TrialRecord]) -> tuple[int, list[tuple[TrialRecord, float]]]:
    """The images seen that half of the trials reached, and at least `FEWEST_TRIALS`, and the best
    AP of these until then. With the AP of different lengths importance would tell which trials were
    stopped early.
    """
    scored = [record for record in records if record.ap is not None]
    ends = sorted((record.images_seen for record in scored), reverse=True)
    needed = min(max(FEWEST_TRIALS, -(-len(ends) // 2)), len(ends))
    images = ends[needed - 1] if ends else 0
    aps = [
        (record, max(known))
        for record in scored
        if record.images_seen >= images
        and (known := [p.ap for p in record.curve if p.ap is not None and p.images_seen <= images])
    ]
    return images, aps
