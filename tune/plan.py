"""Which trials a sweep has: what was tried, what remains, and who proposes the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig, TrainOptions
from cluster.runs.identity import identity
from cluster.runs.run_folder import claim
from cluster.training.automatic import fit_to_pictures
from cluster.training.preflight import Inputs, check_inputs
from tune import presets, space
from tune.build_space import space_of
from tune.config import TRIALS, SweepConfig
from tune.found_anchors import is_found, searches_anchors, with_found_anchors
from tune.presets import Arm
from tune.space import Sample, Space
from tune.trials import TrialRecord, read_records, trial_config

SEED = "training.seed"


@dataclass(frozen=True)
class Plan:
    """A checked sweep."""

    config: TrainConfig
    """With absolute URIs and canvases."""
    sweep: SweepConfig
    uri: str
    space: Space
    inputs: Inputs
    fixed: tuple[Sample, ...]
    """The settings of a grid or of the paper, in order; empty where a searcher proposes."""
    records: tuple[TrialRecord, ...]
    """Of earlier commands."""
    notes: tuple[str, ...] = ()
    """What the user should know before it starts, a line each."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The rows of the paper's tables that are trained; none in other sweeps."""
        return _arms(self.space) if self.sweep.preset == "paper" else ()

    @property
    def epochs(self) -> int:
        return self.sweep.epochs or self.config.training.epochs

    @property
    def trials(self) -> int:
        """How many trials the search has in the end."""
        if self.fixed:
            return min(len(self.fixed), self.sweep.trials or len(self.fixed))
        most = self.sweep.trials or TRIALS
        # A space of choices alone may have fewer settings.
        return min(most, self.space.size or most)

    @property
    def first(self) -> tuple[Sample, ...]:
        """The setting that a searcher tries first: the given one, as far as the space has it."""
        return () if self.fixed else (space.rounded(self.space.given(self.config)),)

    def counts(self, record: TrialRecord) -> bool:
        """Whether an earlier trial is one of this sweep: of the same length, and in the space."""
        if record.role != "search" or record.epochs != self.epochs:
            return False
        if self.fixed:
            return space.rounded(record.sample) in [space.rounded(one) for one in self.fixed]
        return self.space.fits(record.sample)

    def counted(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        return [record for record in records if self.counts(record)]

    def again(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """The trials that are tried again: those that were interrupted or out of time and, where no
        trial has a result, those that failed, for what made them fail may be mended.
        """
        counted = self.counted(records)
        hopeless = not any(record.ap is not None for record in counted)
        return [
            record
            for record in counted
            if record.status == "running"
            or record.is_out_of_time
            or (record.status == "failed" and hopeless and not record.diverged)
        ]

    def ended(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """The trials that are not tried again."""
        names = {record.trial for record in self.again(records)}
        return [record for record in self.counted(records) if record.trial not in names]

    def waiting(self, records: Sequence[TrialRecord]) -> list[Sample]:
        """The settings to try before any that a searcher draws."""
        known = [space.rounded(record.sample) for record in self.counted(records)]
        new = [one for one in self.fixed or self.first if space.rounded(one) not in known]
        return [record.sample for record in self.again(records)] + new


def of_a_trial(options: TrainOptions, sweep: SweepConfig) -> TrainConfig:
    """The training with the sweep's share of the machines in place of each `auto`; a trial has
    that share whatever the training says.
    """
    # Of any batch; whether sweep.workers split it evenly is checked for a trial.
    return options.settled(
        workers=1, gpus_per_worker=1 if sweep.gpus_per_worker else 0, decode_threads=1
    )


def space_of_sweep(config: TrainConfig, sweep: SweepConfig, uri: str) -> tuple[TrainConfig, Space]:
    """The training of a trial with the configured values, and what the sweep searches around it.
    Reads no file. `UsageError` where a trial could not be trained, or the space is wrong.
    """
    try:
        trial = trial_config(config, sweep, uri, {})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"sweep: its trials cannot be trained: {reason} (in a trial, sweep.workers,"
            " sweep.cpus_per_worker and sweep.gpus_per_worker replace those of training)"
        ) from error
    return trial, space_of(sweep.preset, sweep.space, trial)


def plan_of(config: TrainConfig, sweep: SweepConfig, uri: str) -> Plan:
    """Check what can be wrong before any machine is used: the space, the data, storage, the weight
    file, the sweep's name. Claims the folder. `config` has absolute URIs. Errors: see `space_of`
    and `check_inputs`. Where anchors are to be found first, the space has the preset's own. A
    training without a canvas gets that of its pictures.
    """
    # Settings are checked before any file is read.
    space_of_sweep(config, sweep, uri)
    config, fitted = fit_to_pictures(config)
    trial, searched = space_of_sweep(config, sweep, uri)
    inputs = check_inputs(trial, begun=False)
    records = tuple(read_records(uri))
    # The length is no part of it: trials of another length are kept apart.
    whole: dict[str, Any] = identity(
        config, inputs.train_set, inputs.val_set, weights=inputs.weights
    )
    whole = {**whole, "training": {**whole["training"], "epochs": None}}
    claim(uri, config.model_dump(mode="json"), whole, begun=bool(records))
    if searches_anchors(sweep.preset, sweep.space, trial) and is_found(uri):
        searched = space_of(*with_found_anchors(sweep.preset, sweep.space, uri), trial)
    fixed = _fixed(sweep, searched, config)
    said = (*(f"note: {note}" for note in fitted), *(f"warning: {w}" for w in inputs.warnings))
    return Plan(config, sweep, uri, searched, inputs, fixed, records, said)


def _fixed(sweep: SweepConfig, searched: Space, config: TrainConfig) -> tuple[Sample, ...]:
    if sweep.preset == "paper":
        settings = distinct([arm.sample for arm in _arms(searched)], config)
    elif sweep.searcher == "grid":
        settings = searched.grid(sweep.grid_points)
    else:
        return ()
    possible = [one for one in settings if searched.valid(config, one) is None]
    if not possible:
        raise UsageError(
            f"sweep.space: none of its {len(settings)} combinations can be trained; the first ends"
            f" with: {searched.valid(config, settings[0])}"
        )
    return with_seeds(possible, config, range(sweep.seeds))


def _arms(searched: Space) -> tuple[Arm, ...]:
    fields = {field for dimension in searched.dimensions for field in dimension.fields}
    return tuple(arm for arm in presets.paper_arms() if arm.sample.keys() <= fields)


def distinct(settings: Sequence[Sample], config: TrainConfig) -> list[Sample]:
    """The first of all settings that make the same configuration, such as gamma 2 of Table 1b and
    3 scales with 3 ratios of Table 1c, so that it is trained once.
    """
    first: dict[str, Sample] = {}
    for one in settings:
        first.setdefault(space.key(config, one), one)
    return list(first.values())


def with_seeds(
    settings: Sequence[Sample], config: TrainConfig, further: Sequence[int]
) -> tuple[Sample, ...]:
    """Each setting with the configured seed, and with so much more than it."""
    first = config.training.seed
    return tuple(
        one if more == 0 else {**one, SEED: first + more} for more in further for one in settings
    )
