"""A model package -> cells.onnx, cells.int8.onnx if asked, and cells.json, which describes them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import UsageError
from cluster.exporting.comparison import Comparison, compare
from cluster.exporting.measure import Measured, batches_of, measure, samples_of
from cluster.exporting.onnx_predictor import INSTALL, OnnxPredictor, inputs_of, threads
from cluster.exporting.quantise import quantise
from cluster.runs.package_files import package_digest, read_classes, read_thresholds
from cluster.shards.classes import ClassMatch
from cluster.shards.index import ShardSet
from cluster.storage import files
from cluster.storage.scratch import scratch_folder
from detector import export
from detector.model import RetinaNet
from detector.placement import PAD_PIXEL
from detector.predict import Predictor

PACKAGE = "package"
"""In torch, float32: what the files are compared with."""
SUFFIX, INT8_SUFFIX, DESCRIPTION_SUFFIX = ".onnx", ".int8.onnx", ".json"
INPUTS = {
    "images": (
        "uint8 (B, 3, H, W): RGB pixels of pictures on a canvas, each scaled with its aspect ratio,"
        f" at the top left; the rest is {list(PAD_PIXEL)}. H and W are multiples of 32"
    ),
    "sizes": "int64 (B, 2): height and width of each picture on the canvas, px",
}
OUTPUTS = {
    "boxes": "float32 (N, 4): x1, y1, x2, y2, px on the canvas, within the picture",
    "scores": "float32 (N,)",
    "labels": "int64 (N,): see classes",
    "image_indices": "int64 (N,): the image of each detection; image by image, best first",
}


@dataclass(frozen=True)
class Quantisation:
    """What `int8` needs: pictures with objects, on which ranges and AP are measured."""

    shard_set: ShardSet
    classes: ClassMatch
    calibration: int
    """Images."""


@dataclass(frozen=True)
class Exported:
    output: str
    comparison: Comparison
    measured: dict[str, Measured]
    """By file, and of the package itself; empty without int8."""
    bytes_by_file: dict[str, int]

    def lines(self) -> list[str]:
        """The result, for a terminal."""
        folder, description = os.path.split(_beside(self.output, DESCRIPTION_SUFFIX))
        written = ", ".join([*self.bytes_by_file, description])
        return [
            *self._table(),
            f"checked  in onnxruntime: {self.comparison.text()}",
            f"written  {folder}: {written}",
        ]

    def _table(self) -> list[str]:
        if not self.measured:
            return []
        width = max(map(len, self.measured))
        head = f"{'file':{width}}      MB      AP    AP50  ms an image ({threads()} threads)"
        return [head] + [
            f"{name:{width}}  {self._megabytes(name)}  {_shown(each, 'AP')}"
            f"  {_shown(each, 'AP50')}  {each.ms:11.1f}"
            for name, each in self.measured.items()
        ]

    def _megabytes(self, name: str) -> str:
        return f"{self.bytes_by_file[name] / 1e6:6.1f}" if name in self.bytes_by_file else "     -"


def _shown(measured: Measured, name: str) -> str:
    value = measured.table.summary[name]
    return f"{value:6.4f}" if value is not None else "     -"


def check_packages() -> None:
    """`UsageError` where a package that writes or runs ONNX is missing."""
    missing = export.missing_packages()
    if importlib.util.find_spec("onnxruntime") is None:
        missing.append("onnxruntime")
    if missing:
        raise UsageError(f"export: package {' and '.join(missing)} missing; {INSTALL}")


def check_output(output: str) -> None:
    """`UsageError` for a name that does not say what is written."""
    if not output.endswith(SUFFIX) or os.path.basename(output) == SUFFIX:
        raise UsageError(f"output {output}: must end with {SUFFIX}; such as cells{SUFFIX}")


def export_package(
    package: str,
    output: str,
    *,
    model: str,
    pictures: Sequence[Mapping[str, Any]],
    quantisation: Quantisation | None = None,
) -> Exported:
    """Export the package in a local folder to the URI `output`, after the file has detected in
    `pictures` what the package detects; see `samples_of` for what they are. `model` names the
    package in the description.

    `UsageError` for a baseline, `PlainError` where detections differ; then nothing is written.
    """
    predictor = Predictor.load(package)
    predictor.amp = False
    if not isinstance(predictor.model, RetinaNet):
        raise UsageError(
            f"{model}: is a {type(predictor.model).__name__}; only a retinanet can be exported, so"
            " register a model of that architecture"
        )
    name, int8_name = (os.path.basename(_beside(output, end)) for end in (SUFFIX, INT8_SUFFIX))
    with scratch_folder("export") as folder:
        paths = {name: os.path.join(folder, name)}
        export.export_onnx(predictor.model, paths[name], decode=predictor.decode)
        exported = OnnxPredictor(predictor, paths[name])
        comparison = compare(predictor, exported, samples_of(predictor, pictures))
        comparison.refuse(name)
        measured: dict[str, Measured] = {}
        if quantisation is not None:
            paths[int8_name] = os.path.join(folder, int8_name)
            quantise(paths[name], paths[int8_name], _calibration(predictor, quantisation))
            int8 = OnnxPredictor(predictor, paths[int8_name])
            measured = measure(
                {PACKAGE: predictor, name: exported, int8_name: int8},
                quantisation.shard_set,
                quantisation.classes,
            )
        contents = {}
        for each, path in paths.items():
            with open(path, "rb") as file:
                contents[each] = file.read()
    description = {
        **_description(package, predictor, model=model),
        "files": {
            each: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for each, content in contents.items()
        },
        "check": vars(comparison),
        "int8": _int8_description(quantisation, *measured.values()) if quantisation else None,
    }
    # The description is last: where it is, the files are whole.
    for end in (DESCRIPTION_SUFFIX, INT8_SUFFIX):
        files.delete_file(_beside(output, end))
    for end, content in zip((SUFFIX, INT8_SUFFIX), contents.values(), strict=False):
        files.write_bytes(_beside(output, end), content)
    files.write_json(_beside(output, DESCRIPTION_SUFFIX), description)
    sizes = {each: len(content) for each, content in contents.items()}
    return Exported(output, comparison, measured, sizes)


def _beside(output: str, suffix: str) -> str:
    return output.removesuffix(SUFFIX) + suffix


def _calibration(
    predictor: Predictor, quantisation: Quantisation
) -> Iterator[dict[str, np.ndarray]]:
    """The first images of the set, in batches."""
    images = quantisation.calibration
    for batch, _ in batches_of(predictor, quantisation.shard_set, images=images):
        yield inputs_of(batch)


def _description(package: str, predictor: Predictor, *, model: str) -> dict[str, Any]:
    thresholds = read_thresholds(package)
    return {
        "model": model,
        "package_digest": package_digest(package),
        "classes": [category.to_json() for category in read_classes(package)],
        "canvases": [list(canvas) for canvas in predictor.canvases],
        "long_side": predictor.long_side,
        "thresholds": dict(predictor.decode),
        "thresholds_of_classes": None if thresholds is None else thresholds.to_json(),
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }


def _int8_description(
    quantisation: Quantisation, package: Measured, plain: Measured, int8: Measured
) -> dict[str, Any]:
    """What 8 bits cost and give."""
    before, after = plain.table.summary["AP"], int8.table.summary["AP"]
    by_name = {PACKAGE: package, "float32": plain, "int8": int8}
    return {
        "data": quantisation.shard_set.uri,
        "data_digest": quantisation.shard_set.digest,
        "calibration_images": min(quantisation.calibration, quantisation.shard_set.num_rows),
        "AP": {name: each.table.summary["AP"] for name, each in by_name.items()},
        "AP_loss": None if before is None or after is None else before - after,
        "ms_an_image": {name: each.ms for name, each in by_name.items()},
        "threads": threads(),
    }
