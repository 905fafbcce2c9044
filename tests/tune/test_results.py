from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError, UsageError
from cluster.storage import files
from tune.results import best_run


@pytest.mark.parametrize(
    "stored",
    [
        {"version": 2, "best": "trial-a", "trials": ["trial-a", "trial-b"]},
        # As the version before wrote it: the records, best first.
        [{"trial": "trial-a"}, {"trial": "trial-b"}],
    ],
)
def test_the_best_run_is_found_wherever_the_sweep_lies(tmp_path: Path, stored: Any) -> None:
    files.write_json(f"{tmp_path}/results.json", stored)
    assert best_run(str(tmp_path)) == f"{tmp_path}/runs/trial-a"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is finished; give <storage>/sweeps/<name>"):
        best_run(f"{tmp_path}/cels")
    files.write_json(f"{tmp_path}/cells/results.json", {})
    with pytest.raises(UsageError, match=r"has no results.json, .* did you mean cells\?"):
        best_run(f"{tmp_path}/cels")


@pytest.mark.parametrize("stored", [{}, [], None, [7]])
def test_damaged_results_are_named_with_the_remedy(tmp_path: Path, stored: Any) -> None:
    files.write_json(f"{tmp_path}/results.json", stored)
    with pytest.raises(DataError, match="results.json: is damaged .*; delete it and repeat"):
        best_run(str(tmp_path))
