"""sweep.html: what a sweep searched, how its trials went and what it found, as one page without
scripts. The same records give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from cluster.reports.anchor_fit import View
from cluster.reports.html import BarRow, render
from cluster.shards import statistics
from cluster.tracking.config import ui_command
from detector.scores import shown
from tune import commands, fields, plots, space, space_plots
from tune.config import SweepConfig
from tune.confirm import Confirmation
from tune.dimensions import Dimension, same
from tune.importance import Importance, importance
from tune.plan import Plan
from tune.plots import Trials
from tune.trials import TrialRecord, saving, trial_config

MOST_ROWS = 1000
"""Of the table of trials: 0.7 MB."""
SEARCHERS = {
    "tpe": "TPE, a tree-structured Parzen estimator (Optuna)",
    "gp": "a Gaussian process (Optuna)",
    "random": "random draws",
}
STOPPING = {
    "asha": "ASHA: of the trials that reach a rung the best third goes on",
    "median": "trials below the median of the others at the same length end",
    "none": "no trial is stopped early",
}


@dataclass(frozen=True)
class Plot:
    """A picture, and what it shows in words."""

    source: str
    """A data URI."""
    words: str


@dataclass(frozen=True)
class Row:
    """A trial in the table, as text."""

    rank: int
    trial: str
    mark: str
    """What is special about it."""
    status: str
    ap: str
    best_epoch: str
    last_ap: str
    epochs: str
    ms: str
    values: Sequence[str]
    """By the fields of the table."""
    reason: str


@dataclass(frozen=True)
class Report:
    """What the page shows. Pairs are (name, value) unless something else is said."""

    name: str
    uri: str
    tiles: Sequence[tuple[str, str]]
    """(number, what it counts)."""
    winner: Sequence[tuple[str, str]]
    notes: Sequence[str]
    commands: Sequence[tuple[str, str]]
    searched: Sequence[tuple[str, str]]
    how: Sequence[tuple[str, str]]
    given_is_tried: bool
    given_is_best: bool
    curves: Plot
    parallel: Plot
    importance: Importance
    importance_rows: Sequence[BarRow]
    slices: Sequence[Plot]
    pareto: Plot | None
    front: Sequence[Row]
    anchors: Plot | None
    fields: Sequence[str]
    rows: Sequence[Row]
    rows_left_out: int
    table: str


def page(
    plan: Plan,
    records: Sequence[TrialRecord],
    confirmation: Confirmation | None,
    mlflow_uri: str,
) -> str:
    """The page. `records` are those of all trials, the winner first, which has an AP. `DataError`
    where the boxes of data.train cannot be read, for the plot of anchors.
    """
    trials = Trials(tuple(records), given_trial(plan, records))
    found = importance(plan.space, records)
    searched = plan.space.dimensions
    columns = list(dict.fromkeys(field for one in searched for field in one.fields))
    columns += sorted({field for record in records for field in record.sample} - set(columns))
    rows = [_row(plan, trials, rank, columns) for rank in range(1, len(records) + 1)]
    front, pareto, anchors = plots.front(records), plots.pareto(trials), _anchors(plan, trials)
    report = Report(
        name=plan.config.name,
        uri=plan.uri,
        tiles=_tiles(records),
        winner=_winner(trials) + _confirmed(confirmation),
        notes=_notes(plan, trials, confirmation),
        commands=[
            ("Train with it:", commands.train_best(plan, mlflow_uri)),
            ("Register its best checkpoint:", commands.register_best(plan)),
            ("See the MLflow runs of all trials:", ui_command(mlflow_uri)),
        ],
        searched=[(one.name, _values(one)) for one in searched],
        how=_how(plan, records),
        given_is_tried=trials.given is not None,
        given_is_best=trials.given is trials.winner,
        curves=_plot(plots.learning_curves(trials), f"Learning curves of {len(records)} trials"),
        parallel=_plot(
            space_plots.parallel(trials, plan.space),
            f"Parallel coordinates of {', '.join(one.name for one in searched)} and AP",
        ),
        importance=found,
        importance_rows=[
            BarRow(name, share, f"{share:.0%}", "large") for name, share in found.shares.items()
        ],
        slices=[
            _plot(made, f"AP against {dimension.name}")
            for dimension, made in space_plots.slices(trials, plan.space)
        ],
        pareto=pareto and _plot(pareto, "AP against ms an image, with the Pareto front"),
        front=[rows[records.index(record)] for record in front],
        anchors=anchors and _plot(anchors, "Anchors over the sizes of the objects"),
        fields=columns,
        rows=rows[:MOST_ROWS],
        rows_left_out=len(rows[MOST_ROWS:]),
        table=commands.TABLE,
    )
    return render("sweep_report.html.j2", report=report)


def given_trial(plan: Plan, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The best trial of the given setting or, where the space does not hold it, of the nearest."""
    given = plan.space.given(plan.config)

    def is_given(record: TrialRecord) -> bool:
        whole = plan.space.completed(record.sample)
        return whole.keys() == given.keys() and all(
            same(whole[name], given[name]) for name in given
        )

    return next((record for record in records if is_given(record)), None)


def _values(dimension: Dimension) -> str:
    """As an entry of sweep.space says it; of fields that change together the rows."""
    if len(dimension.fields) == 1:
        return str(dimension)
    conditions = str(dimension).removeprefix(str(dimension.values))
    rows = (space_plots.shown(dimension, point) for point in dimension.points(1))
    return "; ".join(rows) + conditions


def _plot(figure: Figure, words: str) -> Plot:
    return Plot(plots.data_uri(figure), words)


def _row(plan: Plan, trials: Trials, rank: int, columns: Sequence[str]) -> Row:
    record = trials.records[rank - 1]
    marks = ["best"] * (record is trials.winner) + ["given"] * (record is trials.given)
    values = {**plan.space.completed(record.sample), **record.sample}
    return Row(
        rank=rank,
        trial=record.trial,
        mark=", ".join(marks),
        status=record.status,
        ap=shown(record.ap),
        best_epoch="-" if record.best is None else str(record.best.epoch),
        last_ap="-" if record.last is None else record.last.shown,
        epochs=f"{record.epochs_done} of {record.epochs}",
        ms=shown(record.ms_per_image, 1),
        values=[fields.shown(values[field]) if field in values else "-" for field in columns],
        reason=record.reason or record.stop,
    )


def _tiles(records: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    ended = Counter(record.status for record in records)
    done, full = (sum(record.epochs_done for record in records), sum(r.epochs for r in records))
    best = records[0].best
    assert best is not None, "a sweep without a result raises before"
    return [
        (best.shown, "best AP"),
        (f"{len(records):,}", "trials"),
        *((f"{number:,}", status) for status, number in ended.items()),
        (f"{done:,}", f"epochs of {full:,}"),
    ]


def _winner(trials: Trials) -> list[tuple[str, str]]:
    record, given = trials.winner, trials.given
    best, last = record.best, record.last
    assert best is not None and last is not None, "a sweep without a result raises before"
    lines = [
        ("trial", record.trial),
        ("setting", space.shown(record.sample)),
        ("AP of its best checkpoint", f"{best.shown} after epoch {best.epoch}"),
        ("its last AP", f"{last.shown} after epoch {last.epoch}"),
    ]
    if given is record:
        return [*lines, ("given setting", "this one")]
    if given is None:
        return [*lines, ("given setting", "was not tried")]
    more = ""
    if given.ap is not None and best.ap is not None:
        more = f", {best.ap - given.ap:.4f} less"
    return [
        *lines,
        ("given setting", f"AP {shown(given.ap)}{more} ({space.shown(given.sample)})"),
    ]


def _confirmed(confirmation: Confirmation | None) -> list[tuple[str, str]]:
    """The trainings with another seed."""
    if confirmation is None:
        return []
    again = [
        f"{name} {shown(first)}, then {shown(second)}"
        for name, (first, second) in confirmation.aps.items()
    ]
    return [
        ("against the given setting", confirmation.verdict),
        (
            f"AP in the search, then with seed {confirmation.seed}",
            "; ".join([*again, f"given setting {shown(confirmation.given_ap)}"]),
        ),
    ]


def _notes(plan: Plan, trials: Trials, confirmation: Confirmation | None) -> list[str]:
    notes = list[str]()
    outside = plan.space.outside(plan.config)
    if outside and trials.given is not None:
        notes.append(
            f"The given configuration is not in the space ({', '.join(outside)}): the nearest"
            " setting stands for it."
        )
    if plan.sweep.seeds == 1 and confirmation is None:
        again = "--sweep.seeds 3" if plan.fixed else "--sweep.confirm true"
        notes.append(
            "Each setting was trained once. With another seed its AP differs a little, so a small"
            f" lead may be chance; {again} trains with others."
        )
    return notes


def _how(plan: Plan, records: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    sweep = plan.sweep
    stopping = "none" if sweep.preset == "paper" else sweep.stopping
    grace = f"; none before epoch {sweep.grace_epochs}" if stopping != "none" else ""
    limits = [f"{plan.trials:,} trials of at most {plan.epochs:,} epochs"]
    if sweep.images is not None:
        limits.append(f"{sweep.images:,} images of all trials")
    if sweep.hours is not None:
        limits.append(f"{sweep.hours:g} hours a command")
    return [
        ("preset", sweep.preset),
        ("who proposes", _who(sweep)),
        ("early stopping", STOPPING[stopping] + grace),
        ("budget", ", ".join(limits)),
        ("trained", saving(records)),
        ("data.train", f"{plan.inputs.train_set.num_rows:,} images, {plan.config.data.train}"),
        ("data.val", f"{plan.inputs.val_set.num_rows:,} images, {plan.config.data.val}"),
    ]


def _who(sweep: SweepConfig) -> str:
    seeds = f", each with {sweep.seeds} seeds" if sweep.seeds > 1 else ""
    if sweep.preset == "paper":
        return f"nobody: the rows of the paper's Table 1{seeds}"
    if sweep.searcher == "grid":
        return f"a grid with {sweep.grid_points} values of each range{seeds}"
    return f"{SEARCHERS[sweep.searcher]}, seed {sweep.seed}"


def _anchors(plan: Plan, trials: Trials) -> Figure | None:
    """Where anchors were searched."""
    searched = plan.space.completed(trials.winner.sample)
    if not any(name.startswith("model.anchors.") for name in searched):
        return None
    given, best = (
        trial_config(plan.config, plan.sweep, plan.uri, sample)
        for sample in ({}, trials.winner.sample)
    )
    objects = statistics.read(plan.inputs.train_set).objects()
    placement = View(given.canvas, given.model.anchors).place(objects)
    return plots.anchors(placement.boxes(objects), given.model.anchors, best.model.anchors)
