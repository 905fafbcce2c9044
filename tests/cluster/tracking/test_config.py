"""The tracking settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.tracking.config import TrackingConfig, tracking_uri, ui_command


def test_the_sqlite_store_is_in_the_storage_root_or_for_a_bucket_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(None, "/data/root") == "sqlite:////data/root/mlflow.db"
    assert tracking_uri(None, "s3://bucket/root") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("http://server:5000", "/data/root") == "http://server:5000"


def test_a_uri_names_a_server_or_an_sqlite_file():
    assert TrackingConfig(uri="https://server:5000/").uri == "https://server:5000"
    assert TrackingConfig(uri="sqlite:////data/mlflow.db").uri == "sqlite:////data/mlflow.db"
    for wrong in ("", "server:5000", "./mlruns", "file:///data", "sqlite:///relative.db"):
        with pytest.raises(ValidationError, match="must be http"):
            TrackingConfig(uri=wrong)
    with pytest.raises(ValidationError, match="must not carry credentials") as refused:
        TrackingConfig(uri="https://me:secret@server:5000")
    assert "secret" not in refused.value.errors()[0]["msg"]


def test_ui_command_names_the_store_or_the_server():
    assert ui_command("sqlite:////data/a b/mlflow.db").endswith(
        "mlflow ui --backend-store-uri 'sqlite:////data/a b/mlflow.db'"
    )
    assert ui_command("https://server:5000") == "https://server:5000"


@pytest.mark.parametrize("name", ["", " ", "cells ", "\tcells", "a\nb", "x" * 201])
def test_an_experiment_has_a_printable_name(name):
    assert TrackingConfig(experiment="猫 and dogs/2").experiment == "猫 and dogs/2"
    with pytest.raises(ValidationError):
        TrackingConfig(experiment=name)
