"""A model package as an MLflow model: logged without pickle, downloaded and verified."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from cluster.errors import DataError, PlainError, UsageError
from cluster.runs.package_files import PACKAGE_FILES, check_version, package_digest
from cluster.storage import record_files, yaml_text
from cluster.storage.scratch import make_scratch_folder, scratch_folder
from cluster.tracking.client import connected
from cluster.tracking.file_digests import FILES_TAG, file_digests, refuse_changed
from cluster.tracking.registry import DIGEST_TAG, Version
from cluster.tracking.run import Run

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

# The imports of detector/ and cluster/tracking/pyfunc_model.py.
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
EXAMPLES = "examples"
DETECTOR = Path(__file__).resolve().parents[2] / "detector"


def log_package(run: Run, folder: str, *, step: int = 0, examples: str | None = None) -> str:
    """Log a package folder as a pickle-free pyfunc of this MLflow run -> `models:/m-...`. `step` is
    images seen.

    The model contains the three files, a copy of detector/, pinned requirements and the signature,
    so it loads without this project; and the folder `examples`, see `cluster.tracking.examples`.
    """
    artifacts = {"package": os.path.abspath(folder)}
    if examples is not None:
        artifacts[EXAMPLES] = os.path.abspath(examples)
    with connected(run.uri) as client, warnings.catch_warnings():
        import mlflow.pyfunc
        from mlflow.models import Model

        # An input example would load the network two more times to show 40 characters of a JPEG;
        # the signature is enough.
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
            artifacts=artifacts,
            code_paths=[str(DETECTOR)],
            pip_requirements=_pinned_requirements(),
            signature=_signature(),
        )
    return info.model_uri


def _pinned_requirements() -> list[str]:
    """The installed versions, without a local part such as +cu130, which no public index has."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in REQUIREMENTS]


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
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
                ColSpec(DataType.string, "error"),
            ]
        ),
        params=ParamSchema([ParamSpec("thresholds", DataType.string, "none")]),
    )


def logged_digests(model_uri: str, *, tracking: str) -> dict[str, str]:
    """sha256 of every file of a model that was logged, as the store gives it back."""
    with scratch_folder("logged") as folder:
        return file_digests(_download(model_uri, tracking=tracking, folder=folder))


def download_model(version: Version, *, tracking: str, folder: str) -> str:
    """A local folder with all files of a registered model, below `folder`: those that were
    registered, to the last byte. `DataError` names files that have changed.

    Versions of before the tag `files_sha256` are compared by the digest of the package alone;
    `UsageError` for a version without either: it was not registered by this project.
    """
    with connected(tracking) as client:
        tags = client.get_model_version(version.name, str(version.version)).tags
    if FILES_TAG not in tags and DIGEST_TAG not in tags:
        raise UsageError(
            f"{version}: has no tag {FILES_TAG}, so its files cannot be verified; it is not a"
            " version that pipelines/register.py made: register its training run"
        )
    model = _download(str(version), tracking=tracking, folder=folder)
    if FILES_TAG in tags:
        refuse_changed(model, tags[FILES_TAG], version=str(version))
    elif package_digest(package_folder(model, version)) != tags[DIGEST_TAG]:
        raise DataError(
            f"{version}: its files are not those that were registered (tag {DIGEST_TAG}); find out"
            " who changed the artifacts; `register` of its run makes a new version"
        )
    return model


def download_package(version: Version, *, tracking: str, folder: str | None = None) -> str:
    """A local folder with the three package files, below `folder` (None: a new temporary one, which
    the caller deletes). The files are verified, see `download_model`.

    `PlainError` when the version is not a package of this project.
    """
    folder = folder or make_scratch_folder("package")
    package = package_folder(download_model(version, tracking=tracking, folder=folder), version)
    check_version(package, str(version))
    return package


def _download(model_uri: str, *, tracking: str, folder: str) -> str:
    with connected(tracking):
        from mlflow.artifacts import download_artifacts

        return download_artifacts(
            model_uri, dst_path=folder, tracking_uri=tracking, registry_uri=tracking
        )


def artifact_folder(model: str, name: str, version: Version) -> str | None:
    """The folder of an artifact in the local folder of a model; None where it has none of this
    name. `DataError` where it lies outside.
    """
    path = _artifact_path(os.path.join(model, "MLmodel"), name, version)
    if path is None:
        return None
    folder = os.path.realpath(os.path.join(model, path))
    if not Path(folder).is_relative_to(os.path.realpath(model)):
        raise DataError(
            f"{version}: its MLmodel names {path}, outside of the model; choose another version"
        )
    return folder


def _artifact_path(described: str, name: str, version: Version) -> str | None:
    """What the file MLmodel says. `DataError` where it is none."""
    try:
        with open(described, encoding="utf-8") as file:
            flavor = yaml_text.parse(file.read())["flavors"].get("python_function", {})
        path = flavor.get("artifacts", {}).get(name, {}).get("path")
    except (AttributeError, LookupError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = record_files.said(error)
        raise DataError(
            f"{version}: its MLmodel is damaged ({reason}); choose another version"
        ) from error
    if path is not None and not isinstance(path, str):
        raise DataError(f"{version}: its MLmodel names no path; choose another version")
    return path


def package_folder(model: str, version: Version) -> str:
    """The folder of the package in the local folder of a model. `PlainError` where it has none."""
    package = artifact_folder(model, "package", version) or model
    missing = [name for name in PACKAGE_FILES if not os.path.isfile(os.path.join(package, name))]
    if missing:
        raise PlainError(
            f"{version} has no {', '.join(missing)}: it is not a model of this project; choose"
            " another version"
        )
    return package
