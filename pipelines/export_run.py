"""A registered model and pictures for `cluster.exporting`: what `export` does."""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

from cluster.errors import UsageError
from cluster.exporting import export
from cluster.exporting.measure import rows_of
from cluster.runs.package_files import check_version, read_classes
from cluster.shards.classes import match_classes
from cluster.shards.index import ShardSet, open_shard_set
from cluster.shards.statistics import read_objects
from cluster.storage import preflight, uris
from cluster.tracking.config import TrackingConfig, tracking_uri
from cluster.tracking.examples import read_examples
from cluster.tracking.logged_package import (
    EXAMPLES,
    artifact_folder,
    download_model,
    package_folder,
)
from cluster.tracking.preflight import check_server
from cluster.tracking.registry import Version, parse_model_uri, resolve

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
    store = tracking_uri(tracking.uri, storage)
    parse_model_uri(model)
    check_server(store, must_exist=True)
    version = resolve(model, tracking=store)
    shard_set = None if data is None else _open(data)
    with tempfile.TemporaryDirectory(prefix="export-") as scratch:
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


def _open(data: str) -> ShardSet:
    preflight.check_reachable(data)
    return open_shard_set(data)


def _quantisation(
    package: str, shard_set: ShardSet, calibration: int, version: Version
) -> export.Quantisation:
    read_objects(shard_set, subject=f"data {shard_set.uri}")
    classes = match_classes(
        shard_set.class_names,
        [category.name for category in read_classes(package)],
        subject=f"data {shard_set.uri}",
        of=f"the model {version}",
        remedy="choose a set with the classes of the model",
    )
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
