from __future__ import annotations

from cluster.tracking.sender import metric_name


def test_metric_names_become_valid_in_mlflow():
    # Comma, parentheses and the quote are not in MLflow's alphabet; ä counts as a letter there.
    assert metric_name("AP/cup, (small)'s ä") == "AP/cup_ _small__s ä"
    assert metric_name("x" * 300) == "x" * 250
