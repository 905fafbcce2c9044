"""The MLflow model registry: package a checkpoint, log, register, promote, look up and download.

Aliases, not stages: `challenger` is the newest version, `champion` the one in use, `previous` the
one before it. An alias can move between two reads, so a job resolves it once and works with the
version.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from cluster.errors import PlainError, UsageError
from cluster.tracking.client import connect, import_mlflow, plain_mlflow_errors
from cluster.tracking.run import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient
from cluster.runs.package_files import PACKAGE_FILES, check_version

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
DIGEST_TAG, LINK_TAG = "package_sha256", "mlflow.modelVersions"
# What detector/ and cluster/tracking/pyfunc_model.py import.
REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "safetensors",
    "simplejpeg",
    "torch",
    "torchvision",
)
DETECTOR = Path(__file__).resolve().parents[2] / "detector"
UPLOAD_TIMEOUT_S = 600


class Version(NamedTuple):
    """One registered model version; `str()` is the URI that names it for ever."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"


def pinned_requirements() -> list[str]:
    """The installed versions. A local part such as +cu130 is cut off: no public index has it."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in REQUIREMENTS]


def signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.binary, "image"),
                ColSpec(DataType.string, "image_id", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(Array(Array(DataType.double)), "boxes"),
                ColSpec(Array(DataType.double), "scores"),
                ColSpec(Array(DataType.long), "labels"),
                ColSpec(Array(DataType.string), "names"),
            ]
        ),
    )


@contextmanager
def talking_to(uri: str) -> Iterator[MlflowClient]:
    """A client of `uri`, with MLflow's process-wide tracking URI set to it as well: logging a model
    has no other way to be told.
    """
    mlflow = import_mlflow()
    client = connect(uri)
    # mlflow.set_tracking_uri writes this variable too; our caller's environment, and what it hands
    # to Ray, must stay as it was.
    kept = {
        name: os.environ.get(name)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    }
    # The answer to an upload comes when the server has stored the whole file.
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(UPLOAD_TIMEOUT_S)
    mlflow.set_tracking_uri(uri)
    try:
        with plain_mlflow_errors(uri):
            yield client
    finally:
        mlflow.set_tracking_uri(kept["MLFLOW_TRACKING_URI"])
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def log_package(run: Run, folder: str, *, step: int = 0) -> str:
    """Log a package folder as a pickle-free pyfunc of this MLflow run -> `models:/m-...`. `step` is
    images seen.

    The model holds the three files, a copy of detector/, pinned requirements and the signature, so
    it loads without this project.
    """
    with talking_to(run.uri) as client, warnings.catch_warnings():
        import mlflow.pyfunc
        from mlflow.models import Model

        # An example would load the network twice more to show 40 characters of a JPEG; the
        # signature says all.
        warnings.filterwarnings("ignore", message=".*[Ii]nput example.*")
        logged = client.create_logged_model(
            client.get_run(run.run_id).info.experiment_id, name="package", source_run_id=run.run_id
        )
        info = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run.run_id,
            model_id=logged.model_id,
            step=step,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"package": os.path.abspath(folder)},
            code_paths=[str(DETECTOR)],
            pip_requirements=pinned_requirements(),
            signature=signature(),
        )
    return info.model_uri


def find_package(digest: str, name: str, *, tracking: str) -> Version | None:
    """The version of `name` that holds this very package, so that a repeated command does not
    register it again.
    """
    with talking_to(tracking) as client:
        for found in client.search_model_versions(f"name='{name}'"):
            if found.tags.get(DIGEST_TAG) == digest:
                return Version(name, int(found.version))
    return None


def register(
    model_uri: str, name: str, *, tracking: str, tags: Mapping[str, str] | None = None
) -> Version:
    """A new version of `name` (created when new) with the alias `challenger`; it is the `champion`
    too when there is none yet.
    """
    from mlflow.exceptions import MlflowException

    with talking_to(tracking) as client:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model_id = model_uri.removeprefix("models:/")
        logged = client.get_logged_model(model_id)
        texts = {key: str(value) for key, value in (tags or {}).items()}
        made = client.create_model_version(
            name, source=model_uri, run_id=logged.source_run_id, model_id=model_id, tags=texts
        )
        version = Version(name, int(made.version))
        # From this tag the UI links a run's model to its versions.
        linked = [*json.loads(logged.tags.get(LINK_TAG, "[]")), version._asdict()]
        client.set_logged_model_tags(model_id, {LINK_TAG: json.dumps(linked)})
        client.set_registered_model_alias(name, CHALLENGER, str(version.version))
        first = CHAMPION not in client.get_registered_model(name).aliases
    if first:
        promote(version, reason="the first version", tracking=tracking)
    return version


def promote(version: Version, *, reason: str, tracking: str) -> None:
    """Make `version` the champion and the old champion `previous`; rolling back is promoting
    `previous`.

    MLflow keeps no history of aliases: every move is a tag `promotion.<UTC time>` of the registered
    model. `UsageError` for an unknown version.
    """
    version = resolve(str(version), tracking=tracking)
    with talking_to(tracking) as client:
        number = str(version.version)
        old = client.get_registered_model(version.name).aliases.get(CHAMPION)
        if old is not None and str(old) == number:
            return
        # `champion` moves last: whatever fails before it leaves the model in use as it was.
        if old is not None:
            client.set_registered_model_alias(version.name, PREVIOUS, str(old))
        audit = json.dumps(
            {"from": old and int(old), "to": version.version, "reason": reason, "by": user()}
        )
        client.set_registered_model_tag(
            version.name, f"promotion.{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}", audit
        )
        client.set_registered_model_alias(version.name, CHAMPION, number)


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers without a name
        return str(os.getuid())


def aliases(version: Version, *, tracking: str) -> list[str]:
    with talking_to(tracking) as client:
        found = client.get_registered_model(version.name).aliases
    return sorted(alias for alias, number in found.items() if int(number) == version.version)


def resolve(model_uri: str, *, tracking: str) -> Version:
    """`models:/NAME@alias` or `models:/NAME/3` -> the version. `UsageError` naming what there is
    when there is no such name, alias or version.
    """
    parts = re.fullmatch(r"models:/([^/@:]+)(?:@([^/@]+)|/(\d+))", model_uri)
    if parts is None:
        raise UsageError(
            f"{model_uri}: a registered model is models:/NAME@champion or models:/NAME/3"
        )
    name, alias, number = parts.groups()
    from mlflow.exceptions import MlflowException

    with talking_to(tracking) as client:
        try:
            found = client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            names = [model.name for model in client.search_registered_models(max_results=20)]
            there = (
                f"there are {', '.join(names)}"
                if names
                else "it is empty; pipelines/register.py registers a model"
            )
            raise UsageError(
                f"{model_uri}: no model {name!r} in the registry at {tracking}; {there}"
            ) from error
        if alias is not None:
            if alias not in found:
                raise UsageError(
                    f"{model_uri}: {name} has no alias {alias!r}; there are"
                    f" {', '.join(sorted(found)) or 'none'}"
                )
            return Version(name, int(found[alias]))
        versions = sorted(
            int(version.version) for version in client.search_model_versions(f"name='{name}'")
        )
    if int(number) not in versions:
        raise UsageError(
            f"{model_uri}: {name} has no version {number}; there are"
            f" {', '.join(map(str, versions)) or 'none'}"
        )
    return Version(name, int(number))


def download_package(version: Version, *, tracking: str, folder: str | None = None) -> str:
    """A local folder with the three package files, below `folder` (a new temporary one when None,
    the caller's to delete).

    `PlainError` when the version is not a package of this project.
    """
    folder = folder or tempfile.mkdtemp(prefix="retinaray-package-")
    with talking_to(tracking):
        from mlflow.artifacts import download_artifacts

        model = download_artifacts(
            str(version), dst_path=folder, tracking_uri=tracking, registry_uri=tracking
        )
    with open(os.path.join(model, "MLmodel"), encoding="utf-8") as file:
        flavor = yaml.safe_load(file)["flavors"].get("python_function", {})
    package = os.path.join(model, flavor.get("artifacts", {}).get("package", {}).get("path", ""))
    missing = [name for name in PACKAGE_FILES if not os.path.isfile(os.path.join(package, name))]
    if missing:
        raise PlainError(
            f"{version} has no {', '.join(missing)}: it is not a model of this project; choose"
            " another version"
        )
    check_version(package, str(version))
    return package
