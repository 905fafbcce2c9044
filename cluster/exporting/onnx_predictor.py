"""An exported file in onnxruntime, in the place of the network of a predictor."""

from __future__ import annotations

import os

import numpy as np

from detector.batch import Batch
from detector.decode import Detections
from detector.predict import Predictor

INSTALL = "pip install onnx onnxscript onnxruntime"
WARNINGS = 3
"""From this severity on onnxruntime writes to stderr: errors alone."""


def threads() -> int:
    """The CPUs that this process may use, one thread each."""
    return len(os.sched_getaffinity(0))


class OnnxPredictor(Predictor):
    """The predictor of a package whose detections come from an exported file, on CPUs."""

    def __init__(self, package: Predictor, file: str):
        import onnxruntime

        assert not package.amp, "an exported file computes in float32"
        super().__init__(
            package.model,
            canvases=package.canvases,
            long_side=package.long_side,
            decode=package.decode,
            amp=False,
            batch_size=package.batch_size,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = WARNINGS
        self.session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )

    def on_canvas(self, batch: Batch) -> list[Detections]:
        # Tensors alone: an output of onnxruntime may be other things too.
        outputs = [np.asarray(output) for output in self.session.run(None, inputs_of(batch))]
        boxes_N4, scores_N, labels_N, image_N = outputs
        ends = np.bincount(image_N, minlength=len(batch.images)).cumsum()[:-1]
        columns = (np.split(column, ends) for column in (boxes_N4, scores_N, labels_N))
        return [Detections(*image) for image in zip(*columns, strict=True)]


def inputs_of(batch: Batch) -> dict[str, np.ndarray]:
    """A batch on the CPU as an exported file takes it."""
    return {
        "images": batch.images.contiguous().numpy(),
        "sizes": batch.sizes_B2.numpy().astype(np.int64),
    }
