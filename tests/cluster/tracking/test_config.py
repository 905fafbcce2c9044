"""The tracking settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.errors import UsageError
from cluster.tracking.config import TrackingConfig, experiment_name, tracking_uri, ui_command


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
    for uri in ("me:secret@server:5000", "me:a/secret@server:5000", "server?token=secret"):
        with pytest.raises(ValidationError, match="must not carry credentials") as refused:
            TrackingConfig(uri=f"https://{uri}")
        assert "secret" not in refused.value.errors()[0]["msg"]


def test_the_option_wins_over_the_environment_and_that_over_the_storage_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable, store in (
        ("http://server:5000/", "http://server:5000"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        # As MLflow's own commands take it, and as the documents write it.
        ("sqlite:///runs/mlflow.db", f"sqlite:///{tmp_path}/runs/mlflow.db"),
        ("sqlite:///../mlflow.db", f"sqlite:///{tmp_path.parent}/mlflow.db"),
        ("", "sqlite:////storage/mlflow.db"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
        assert tracking_uri(None, "/storage") == store
        assert tracking_uri("http://option:5000", "/storage") == "http://option:5000"


@pytest.mark.parametrize("variable", ["./mlruns", "file:///data", "databricks", "postgresql://h/d"])
def test_a_store_of_another_kind_in_the_environment_is_refused(variable, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    with pytest.raises(UsageError, match="^MLFLOW_TRACKING_URI must be http"):
        tracking_uri(None, "/storage")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@server:5000")
    with pytest.raises(UsageError, match="^MLFLOW_TRACKING_URI must not carry cred") as refused:
        tracking_uri(None, "/storage")
    assert "secret" not in str(refused.value)


def test_a_registry_elsewhere_is_refused_and_the_same_one_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for same in (f"sqlite:///{tmp_path}/mlflow.db", "sqlite:///mlflow.db", ""):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", same)
        assert tracking_uri(None, ".") == f"sqlite:///{tmp_path}/mlflow.db"
    for other in ("http://me:secret@registry:5000", "databricks-uc", "sqlite:///other.db"):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", other)
        with pytest.raises(UsageError, match="^MLFLOW_REGISTRY_URI names another store") as refused:
            tracking_uri(None, ".")
        assert "secret" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://server:5000/")
    assert tracking_uri("http://server:5000", ".") == "http://server:5000"


@pytest.mark.parametrize("name", ["MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"])
def test_a_run_or_experiment_that_would_be_passed_over_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "12")
    with pytest.raises(UsageError, match=f"^{name} '12' would not be heeded: .* unset it$"):
        tracking_uri(None, "/storage")


def test_the_experiment_is_that_of_the_option_else_of_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert experiment_name(None) == "retinaray"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cells")
    assert experiment_name(None) == "cells" and experiment_name("mine") == "mine"
    for bad in ("   ", "x" * 600, "a\nb"):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", bad)
        with pytest.raises(UsageError, match="^MLFLOW_EXPERIMENT_NAME .*correct the variable"):
            experiment_name(None)


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
