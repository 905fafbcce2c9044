"""The results of a sweep, in its folder: best.yaml, results.csv and, written last, results.json."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import replace

import yaml

from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.storage.uris import join
from tune import space
from tune.trials import TrialRecord

RESULTS, TABLE, BEST = "results.json", "results.csv", "best.yaml"


def publish(uri: str, config: TrainConfig, records: Sequence[TrialRecord]) -> None:
    """`records` are those of all trials, best first."""
    best = records[0]
    assert best.ap is not None, "a sweep without a result raises before"
    head = (
        f"# The best of {len(records)} trials of {uri}: AP {best.ap:.4f}. For train --config; name,"
        " storage and data come from the command line.\n"
    )
    recipe = space.recipe(space.apply(config, best.sample))
    files.write_bytes(join(uri, BEST), (head + yaml.safe_dump(recipe, sort_keys=False)).encode())
    left_out = ("version", "sample", "proposed")
    rows = [
        {name: value for name, value in record.to_json().items() if name not in left_out}
        | dict(record.sample)
        for record in records
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    files.write_bytes(join(uri, TABLE), text.getvalue().encode())
    files.write_json(join(uri, RESULTS), [record.to_json() for record in records])


def read_results(uri: str) -> list[TrialRecord] | None:
    """The records of a finished sweep, best first; None where the sweep is not finished."""
    results = join(uri, RESULTS)
    if not files.exists(results):
        return None
    records = [TrialRecord.from_json(stored, results) for stored in files.read_json(results)]
    # The sweep may have been moved since the file was written.
    return [
        replace(record, run=join(uri, "runs", os.path.basename(record.run))) for record in records
    ]
