"""The model package: weights, description and classes that a checkpoint gives and a predictor
loads.
"""

from __future__ import annotations

import hashlib
import os
import tempfile

from cluster.errors import DataError, UsageError
from cluster.runs.evaluations import Weights
from cluster.storage import files
from cluster.storage.uris import absolute, join
from detector.checkpoint import STATE_FILE, parse_state
from detector.predict import (
    CLASSES_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    Predictor,
    check_description,
    read_json,
    write_package,
)

PACKAGE_FILES = (WEIGHTS_FILE, MODEL_FILE, CLASSES_FILE)
WEIGHT_FILES: dict[Weights, str] = {"model": "model.safetensors", "ema": "ema.safetensors"}


def read_package(folder: str) -> dict[str, bytes]:
    """The files of a package by name, as they travel through the object store."""
    package = {}
    for name in (WEIGHTS_FILE, MODEL_FILE, CLASSES_FILE):
        with open(os.path.join(folder, name), "rb") as file:
            package[name] = file.read()
    return package


def load_predictor(package: dict[str, bytes], device: str) -> Predictor:
    with tempfile.TemporaryDirectory(prefix="package-") as folder:
        for name, content in package.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        return Predictor.load(folder, device=device)


def build_package(checkpoint: str, folder: str, *, weights: Weights = "model") -> None:
    """Write the three files of a model package from a checkpoint, a folder at a URI."""
    checkpoint = absolute(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        local = os.path.join(scratch, WEIGHTS_FILE)
        try:
            state = parse_state(files.read_bytes(join(checkpoint, STATE_FILE)))
            package, data = (
                state["package"],
                files.read_bytes(join(checkpoint, WEIGHT_FILES[weights])),
            )
            if hashlib.sha256(data).hexdigest() != state["files"][WEIGHT_FILES[weights]]["sha256"]:
                raise DataError(
                    f"{checkpoint}/{WEIGHT_FILES[weights]}: is damaged (its sha256 is another); continue"
                    " the training, or take another run"
                )
            files.write_bytes(local, data)
            write_package(
                folder,
                weights=local,
                description=package["description"],
                classes=package["classes"],
            )
        except FileNotFoundError as error:
            raise UsageError(
                f"{checkpoint}: the best checkpoint is not complete there ({error}); was it deleted"
                " or moved?"
            ) from error
        except KeyError as error:
            raise UsageError(
                f"{checkpoint}/{STATE_FILE}: {error} is missing; it was not written by train, or by"
                " another version of it"
            ) from error
        except ValueError as error:
            raise DataError(
                f"{checkpoint}: is damaged ({error}); continue the training, or take another run"
            ) from error
    check_version(folder, f"{checkpoint}/{STATE_FILE}")


def package_digest(folder: str) -> str:
    """sha256 over the three files: two packages with one digest predict the same."""
    digest = hashlib.sha256()
    for name in PACKAGE_FILES:
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_version(package: str, source: str) -> None:
    """`UsageError` where another version of the code wrote the package in this local folder, before
    it is sent to workers; `source` is its name.
    """
    try:
        check_description(read_json(package, MODEL_FILE))
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
