"""A registered model and pictures for `cluster.exporting`: what `export` does."""

from __future__ import annotations

import itertools
from typing import Any

from cluster.errors import UsageError
from cluster.exporting import export
from cluster.exporting.measure import rows_of
from cluster.runs.package_files import check_version
from cluster.shards.index import ShardSet
from cluster.storage import preflight, uris
from cluster.storage.scratch import scratch_folder
from cluster.tracking.config import TrackingConfig
from cluster.tracking.examples import read_examples
from cluster.tracking.logged_package import (
    EXAMPLES,
    artifact_folder,
    download_model,
    package_folder,
)
from cluster.tracking.registry import Version
from pipelines.scoring_inputs import find_model, matched_classes, open_set

PICTURES = 4
"""Of a shard set, on which a file is checked."""


def export_run(
    model: str,
    output: str,
    *,
    data: str | None,
    calibration: int | None,
    tracking: TrackingConfig,
    storage: str,
) -> export.Exported:
    """Export a registered model to the file `output`. `calibration`: images of the shard set `data`
    for a second file in 8-bit integers; None: no such file.
    """
    export.check_packages()
    export.check_output(output)
    output = uris.absolute(output)
    preflight.check_writable(output.rpartition("/")[0])
    version, store = find_model(model, tracking, storage)
    shard_set = None
    if data is not None:
        # AP needs objects, the check of the file only pictures.
        shard_set = open_set(data, needs_objects=calibration is not None)
    with scratch_folder("export") as scratch:
        folder = download_model(version, tracking=store, folder=scratch)
        package = package_folder(folder, version)
        check_version(package, str(version))
        quantisation = None
        if calibration is not None:
            assert shard_set is not None, "checked by the configuration"
            quantisation = _quantisation(package, shard_set, calibration, version)
        return export.export_package(
            package,
            output,
            model=str(version),
            pictures=_pictures(folder, shard_set, version),
            quantisation=quantisation,
        )


def _quantisation(
    package: str, shard_set: ShardSet, calibration: int, version: Version
) -> export.Quantisation:
    remedy = "choose a set with the classes of the model"
    classes = matched_classes(shard_set, package, str(version), remedy=remedy)
    return export.Quantisation(shard_set, classes, calibration)


def _pictures(model: str, shard_set: ShardSet | None, version: Version) -> list[dict[str, Any]]:
    """The first of the set or, without one, the examples of the model in a local folder."""
    if shard_set is not None:
        return list(itertools.islice(rows_of(shard_set), PICTURES))
    folder = artifact_folder(model, EXAMPLES, version)
    pictures = []
    for number, example in enumerate([] if folder is None else read_examples(folder)):
        with open(example.path, "rb") as file:
            row = {"image": file.read(), "image_id": number, "file_name": example.path}
        pictures.append(row)
    if not pictures:
        raise UsageError(
            f"{version}: was registered without example pictures, on which the file is checked;"
            " give --data, a shard set"
        )
    return pictures
