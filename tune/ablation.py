"""The ablations of the focal loss paper beside its own figures, in the folder of a sweep:

ablation.txt
    the tables, as the terminal shows them
ablation.csv
    a line for each row of the tables
ablation.png
    AP against alpha, gamma and anchors, ours and the paper's

AP is that after the last epoch, as in the paper, in per cent.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, stdev

from cluster.reports.anchor_fit import View
from cluster.runs.config import TrainConfig
from cluster.shards import statistics
from cluster.shards.index import ShardSet
from cluster.storage import files
from cluster.storage.scratch import scratch_folder
from cluster.storage.uris import join
from cluster.tracking.run import Run
from tune import space
from tune.imbalance import Imbalance, measure
from tune.plan import SEED, Plan
from tune.presets import Arm
from tune.space import Sample
from tune.trials import TrialRecord

TEXT, LINES, PICTURE = "ablation.txt", "ablation.csv", "ablation.png"
TITLES = {
    "5.1": "Section 5.1: cross entropy",
    "1a": "Table 1a: balanced cross entropy over alpha",
    "1b": "Table 1b: focal loss over gamma, with the paper's best alpha for each",
    "1c": "Table 1c: scales an octave and ratios of the anchors",
}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    label: str
    setting: Sample
    """The fields in which the row differs from the configuration of the sweep."""
    paper_ap: float | None
    """AP in per cent, as printed."""
    imbalance: Imbalance
    results: Mapping[str, float]
    """AP in per cent by the name of the trial, one for each seed."""
    missing: Mapping[str, str]
    """Trials without a result: why, by the name of the trial."""

    @property
    def ap(self) -> float | None:
        """Mean over the seeds; None without a result."""
        return mean(self.results.values()) if self.results else None

    @property
    def margin(self) -> float | None:
        """Half of the 95 % confidence interval of the mean, by Student's t; None for fewer than two
        seeds.
        """
        # Here, because scipy takes a second to import.
        from scipy.stats import t

        seeds = len(self.results)
        if seeds < 2:
            return None
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, seeds - 1))
        return quantile * stdev(self.results.values()) / math.sqrt(seeds)


@dataclass(frozen=True)
class Table:
    """A table of the paper, or the lines of a section."""

    number: str
    """As in `Arm.table`."""
    rows: tuple[Row, ...]


def tables(
    records: Sequence[TrialRecord],
    arms: Sequence[Arm],
    config: TrainConfig,
    *,
    imbalance_of: Callable[[TrainConfig], Imbalance],
) -> tuple[Table, ...]:
    """The arms with the trials that made them, in the order of the arms. A trial stands in every
    row whose configuration it trained, whatever its seed.
    """
    trained: dict[str, list[TrialRecord]] = {}
    for record in sorted(records, key=lambda record: record.number):
        sample = {name: value for name, value in record.sample.items() if name != SEED}
        trained.setdefault(space.key(config, sample), []).append(record)
    rows: dict[str, list[Row]] = {}
    for arm in arms:
        own = trained.get(space.key(config, arm.sample), [])
        row = Row(
            label=arm.label,
            setting=arm.sample,
            paper_ap=arm.paper_ap,
            imbalance=imbalance_of(space.apply(config, arm.sample)),
            results={one.trial: 100 * ap for one in own if (ap := _final_ap(one)) is not None},
            missing={one.trial: _why(one) for one in own if _final_ap(one) is None},
        )
        rows.setdefault(arm.table, []).append(row)
    return tuple(Table(number, tuple(own)) for number, own in rows.items())


def _final_ap(record: TrialRecord) -> float | None:
    """Of a trial with the whole budget."""
    return record.last.ap if record.status == "done" and record.last is not None else None


def _why(record: TrialRecord) -> str:
    why = record.reason or record.stop
    return f"{record.status}{f': {why}' if why else ''}" if record.status != "done" else "no AP"


def text(found: Sequence[Table]) -> str:
    """The tables, to read in a terminal of 80 columns, and below them what they lack."""
    lines: list[str] = []
    for table in found:
        lines += [TITLES[table.number], _HEAD, *map(_line, table.rows)]
        for row in table.rows:
            lines += [f"  {row.label}: {trial} {why}" for trial, why in row.missing.items()]
        untrained = sum(not (row.results or row.missing) for row in table.rows)
        if untrained:
            lines.append(f"  not trained: {untrained} of {len(table.rows)} rows")
        lines.append("")
    seeds = [len(row.results) for table in found for row in table.rows]
    if 1 in seeds:
        lines.append("one seed: no interval; --sweep.seeds 3 trains each row three times")
    lines.append("AP in %, after the last epoch, mean of the seeds; imbalance: anchors a positive")
    return "\n".join(lines) + "\n"


_COLUMNS = "{:<24}{:>8}{:>16}{:>7}{:>8}{:>11}"
_HEAD = _COLUMNS.format("", "AP", "95 %", "seeds", "paper", "imbalance")


def _line(row: Row) -> str:
    ap, margin, imbalance = row.ap, row.margin, row.imbalance.anchors_a_positive
    return _COLUMNS.format(
        row.label,
        "-" if ap is None else f"{ap:.2f}",
        "-" if ap is None or margin is None else f"{ap - margin:.2f}..{ap + margin:.2f}",
        len(row.results),
        "-" if row.paper_ap is None else f"{row.paper_ap:.1f}",
        "-" if imbalance is None else f"{imbalance:,.0f}",
    )


def comma_separated(found: Sequence[Table]) -> str:
    """ablation.csv. An empty cell: there is no such number."""
    out = io.StringIO()
    rows = [_cells(table, row) for table in found for row in table.rows]
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _cells(table: Table, row: Row) -> dict[str, object]:
    ap, margin = row.ap, row.margin
    interval = (None, None) if ap is None or margin is None else (ap - margin, ap + margin)
    return {
        "table": table.number,
        "row": row.label,
        "setting": json.dumps(dict(row.setting)),
        "AP_percent": ap,
        "AP_low": interval[0],
        "AP_high": interval[1],
        "seeds": len(row.results),
        "paper_AP_percent": row.paper_ap,
        "anchors_an_image": row.imbalance.anchors,
        "positives_an_image": row.imbalance.positives,
        "anchors_a_positive": row.imbalance.anchors_a_positive,
        "trials": " ".join(row.results),
        "without_result": "; ".join(f"{trial} {why}" for trial, why in row.missing.items()),
    }


def publish(plan: Plan, records: Sequence[TrialRecord]) -> None:
    """Write the three files. `DataError` where the training set cannot be read."""
    from tune.ablation_plot import figure

    found = tables(records, plan.arms, plan.config, imbalance_of=_measured(plan.inputs.train_set))
    picture = io.BytesIO()
    figure(found).savefig(picture, format="png", dpi=110)
    files.write_bytes(join(plan.uri, TEXT), text(found).encode())
    files.write_bytes(join(plan.uri, LINES), comma_separated(found).encode())
    files.write_bytes(join(plan.uri, PICTURE), picture.getvalue())


def _measured(train_set: ShardSet) -> Callable[[TrainConfig], Imbalance]:
    """Rows with the same anchors share one measurement."""
    annotations = statistics.read(train_set)

    @cache
    def measured(view: View, positive_iou: float) -> Imbalance:
        return measure(annotations, view, positive_iou=positive_iou)

    return lambda config: measured(
        View(config.canvas, config.model.anchors), config.loss.positive_iou
    )


def log(parent: Run, uri: str) -> None:
    """The three files, on the sweep's own MLflow run."""
    with scratch_folder("ablation") as folder:
        for name in (TEXT, LINES, PICTURE):
            path = os.path.join(folder, name)
            with open(path, "wb") as file:
                file.write(files.read_bytes(join(uri, name)))
            parent.log_artifact(path)


def lines(uri: str) -> list[str]:
    """The tables of a finished sweep, for a terminal."""
    stored = files.read_bytes(join(uri, TEXT)).decode()
    return [f"picture  {join(uri, PICTURE)}", "", *stored.splitlines()]
