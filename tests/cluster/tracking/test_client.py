from __future__ import annotations

import os

from cluster.tracking.promotion import register
from cluster.tracking.registry import aliases


def test_the_tracking_uri_of_the_process_does_not_change(tracking, logged, monkeypatch):
    import mlflow

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
        assert aliases(register(logged[0], "quiet", tracking=tracking), tracking=tracking)
        assert (
            mlflow.get_tracking_uri()
            == os.environ["MLFLOW_TRACKING_URI"]
            == "http://elsewhere:5000"
        )
    mlflow.set_tracking_uri(None)
