"""The three files of a model package: built from a checkpoint, read to be sent to workers, loaded
as a predictor. Beside them may lie validation.json, what the model detected on data.val, and
thresholds.json, the score from which each class is best used.
"""

from __future__ import annotations

import hashlib
import json
import os

from cluster.errors import DataError, UsageError
from cluster.runs.evaluations import Weights
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.scratch import scratch_folder
from cluster.storage.uris import absolute, join
from detector import json_text
from detector.checkpoint import STATE_FILE, parse_state
from detector.detection_counts import DetectionCounts
from detector.operating_points import Thresholds
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
VALIDATION_FILE, THRESHOLDS_FILE = "validation.json", "thresholds.json"
"""They change no prediction unless asked for, so they are no part of the digest."""
PackageFiles = dict[str, bytes]
"""The content of the files by name, as it travels through the object store."""
WEIGHT_FILES: dict[Weights, str] = {"model": "model.safetensors", "ema": "ema.safetensors"}
"""The files of a checkpoint."""


def read_package(folder: str) -> PackageFiles:
    package = {}
    for name in PACKAGE_FILES:
        with open(os.path.join(folder, name), "rb") as file:
            package[name] = file.read()
    return package


def stored_classes(content: bytes) -> list[Category]:
    """The classes of a package's classes.json, in the order of the labels."""
    return list(map(Category.from_json, json_text.parse(content)))


def read_classes(folder: str) -> list[Category]:
    """The classes of a package in a local folder, in the order of the labels."""
    with open(os.path.join(folder, CLASSES_FILE), "rb") as file:
        return stored_classes(file.read())


def load_predictor(package: PackageFiles, device: str) -> Predictor:
    with scratch_folder("package") as folder:
        for name, content in package.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        return Predictor.load(folder, device=device)


def build_package(checkpoint: str, folder: str, *, weights: Weights = "model") -> None:
    """Write the files of the package into a local folder, from a checkpoint at a URI.

    `UsageError` where the checkpoint is incomplete or of another version, `DataError` where it is
    damaged.
    """
    checkpoint = absolute(checkpoint)
    weight_file = WEIGHT_FILES[weights]
    remedy = "continue the training, or take another run"
    with scratch_folder("package") as scratch:
        local = os.path.join(scratch, WEIGHTS_FILE)
        try:
            state = parse_state(files.read_bytes(join(checkpoint, STATE_FILE)))
            package, data = state["package"], files.read_bytes(join(checkpoint, weight_file))
            if hashlib.sha256(data).hexdigest() != state["files"][weight_file]["sha256"]:
                raise DataError(
                    f"{checkpoint}/{weight_file}: is damaged (sha256 mismatch); {remedy}"
                )
            files.write_bytes(local, data)
            # As stored, not through `Package`: a package keeps the keys that its run has written.
            write_package(
                folder,
                weights=local,
                description=package["description"],
                classes=package["classes"],
            )
        except FileNotFoundError as error:
            raise UsageError(
                f"{checkpoint}: the checkpoint is not complete ({error}); check whether it was"
                " deleted or moved"
            ) from error
        except KeyError as error:
            raise UsageError(
                f"{checkpoint}/{STATE_FILE}: {error} is missing; it was not written by train, or by"
                " another version of it"
            ) from error
        except ValueError as error:
            raise DataError(f"{checkpoint}: is damaged ({error}); {remedy}") from error
    check_version(folder, f"{checkpoint}/{STATE_FILE}")


def package_digest(folder: str) -> str:
    """sha256 of the files: two packages with the same digest predict the same."""
    digest = hashlib.sha256()
    for name in PACKAGE_FILES:
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def write_validation(folder: str, detected: DetectionCounts) -> None:
    """Put what the model detected on data.val into a package in a local folder."""
    with open(os.path.join(folder, VALIDATION_FILE), "w", encoding="utf-8") as file:
        json.dump(detected.to_json(), file)


def read_validation(folder: str) -> DetectionCounts | None:
    """None where a package has none, or that of another version or other classes."""
    try:
        with open(os.path.join(folder, VALIDATION_FILE), encoding="utf-8") as file:
            detected = DetectionCounts.from_json(json_text.parse(file.read()))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    names = tuple(category.name for category in read_classes(folder))
    return detected if detected.class_names == names else None


def write_thresholds(folder: str, thresholds: Thresholds) -> None:
    """Put the thresholds of the classes into a package in a local folder."""
    with open(os.path.join(folder, THRESHOLDS_FILE), "w", encoding="utf-8") as file:
        json.dump(thresholds.to_json(), file)


def read_thresholds(folder: str) -> Thresholds | None:
    """None where a package has none, or those of another version or other classes."""
    try:
        with open(os.path.join(folder, THRESHOLDS_FILE), encoding="utf-8") as file:
            found = Thresholds.from_json(json_text.parse(file.read()))
    except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    return found if list(found.classes) == [each.name for each in read_classes(folder)] else None


def check_version(package: str, source: str) -> None:
    """`UsageError` where another version of the code wrote the package in this local folder, before
    it is sent to workers. The message names `source`.
    """
    try:
        check_description(read_json(package, MODEL_FILE))
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
