"""The results of a sweep, in its folder: best.yaml, results.csv, sweep.html, for the preset paper
the files of `tune.ablation` and, written last, results.json.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

import yaml

from cluster.errors import UsageError
from cluster.runs import run_folder
from cluster.storage import files, record_files
from cluster.storage.uris import absolute, join
from cluster.tracking.run import Run
from tune import ablation, space
from tune.commands import BEST, TABLE
from tune.confirm import Confirmation, read_confirmation
from tune.plan import Plan
from tune.trials import RUNS, TrialRecord, ranked

RESULTS, REPORT = "results.json", "sweep.html"
VERSION = 2
"""Of results.json. Version 1 was a list of records."""


def publish(
    plan: Plan,
    records: Sequence[TrialRecord],
    confirmation: Confirmation | None,
    mlflow_uri: str,
) -> None:
    """`records` are those of all trials, the winner first."""
    # Imported here: matplotlib and SciPy take seconds, in which the trials could run.
    from tune import report

    best, uri = records[0], plan.uri
    assert best.best is not None, "a sweep without a result raises before"
    head = (
        f"# The best of {len(records)} trials of {uri}: AP {best.best.shown}. For train --config;"
        " name, storage and data come from the command line.\n"
    )
    recipe = space.recipe(space.apply(plan.config, best.sample))
    files.write_bytes(join(uri, BEST), (head + yaml.safe_dump(recipe, sort_keys=False)).encode())
    files.write_bytes(join(uri, TABLE), _table(records).encode())
    if plan.arms:
        ablation.publish(plan, records)
    page = report.page(plan, records, confirmation, mlflow_uri)
    files.write_bytes(join(uri, REPORT), page.encode("utf-8", "replace"))
    content = {
        "version": VERSION,
        "best": best.trial,
        "trials": [record.trial for record in records],
    }
    files.write_json(join(uri, RESULTS), content)


def best_run(sweep: str) -> str:
    """URI of the training run of a sweep's best trial. `UsageError` where the folder `sweep` has no
    results.
    """
    uri = absolute(sweep)
    results = join(uri, RESULTS)
    if not files.exists(results):
        raise UsageError(
            f"{uri}: has no {RESULTS}, so it is not the folder of a sweep that is finished;"
            f" {run_folder.beside(uri, RESULTS, otherwise='give <storage>/sweeps/<name>')}"
        )
    name = record_files.read(results, _best_of, remedy="delete it and repeat the sweep's command")
    return join(uri, RUNS, name)


def _best_of(stored: Any) -> str:
    # Version 1 was the records, best first.
    name = stored[0]["trial"] if isinstance(stored, list) else stored["best"]
    if not isinstance(name, str) or "/" in name:
        raise ValueError("its best is no name of a trial")
    return name


def is_complete(plan: Plan) -> bool:
    """Whether the sweep has nothing left to try and its results are written."""
    if len(plan.ended(plan.records)) < plan.trials or not files.exists(join(plan.uri, RESULTS)):
        return False
    stored = files.read_json(join(plan.uri, RESULTS))
    records = ranked(plan.counted(plan.records))
    if plan.sweep.confirm and read_confirmation(plan, records) is None:
        return False
    names = {record.trial for record in records}
    return isinstance(stored, dict) and set(stored.get("trials", ())) == names


def log_results(
    parent: Run, uri: str, records: Sequence[TrialRecord], confirmation: Confirmation | None
) -> None:
    """The best trial and the tables, on the sweep's own MLflow run."""
    best = records[0]
    assert best.best is not None, "a sweep without a result raises before"
    metrics = {"best/AP": best.best.ap, "best/AP50": best.best.ap50}
    parent.log_metrics(
        {name: value for name, value in metrics.items() if value is not None}, len(records)
    )
    parent.set_tag("best_trial", best.trial)
    parent.set_tag("best_setting", space.shown(best.sample))
    if confirmation is not None:
        parent.set_tag("confirmation", confirmation.verdict)
    for name in (BEST, TABLE, REPORT):
        parent.log_text(files.read_bytes(join(uri, name)).decode(), name)


def _table(records: Sequence[TrialRecord]) -> str:
    fields = sorted({field for record in records for field in record.sample})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[*_row(records[0]), *fields])
    writer.writeheader()
    for record in records:
        row = {**_row(record), **record.sample}
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet takes for no formula: a reason repeats what files hold."""
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) else value


def _row(record: TrialRecord) -> dict[str, Any]:
    best, last = record.best, record.last
    return {
        "trial": record.trial,
        "status": record.status,
        "best_AP": None if best is None else best.ap,
        "best_AP50": None if best is None else best.ap50,
        "best_epoch": None if best is None else best.epoch,
        "last_AP": None if last is None else last.ap,
        "epochs_done": record.epochs_done,
        "epochs": record.epochs,
        "images_seen": record.images_seen,
        "ms_per_image": record.ms_per_image,
        "reason": record.reason or record.stop,
        "run": os.path.basename(record.run),
    }
