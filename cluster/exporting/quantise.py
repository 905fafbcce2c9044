"""An exported file with convolutions in 8-bit integers, by onnxruntime's static quantisation."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

QUANTISED = ("Conv", "Relu", "Add", "MaxPool", "Resize")
"""The operators of the network that have a kernel for 8 bits."""


def quantise(file: str, output: str, batches: Iterable[dict[str, np.ndarray]]) -> int:
    """Write a float32 file to `output` with 8-bit weights, a scale for each channel, and 8-bit
    activations, whose ranges are those on the calibration `batches`. Returns the number of
    convolutions in 8 bits.

    The output convolutions of the heads, anchors, decoding and NMS stay in float32: a logit of
    eight bits has too few values to order detections by.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, np.ndarray]] = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self.batches, None)

    nodes = nodes_of_network(onnx.load(file).graph)
    # It advises a preparation that torch's exporter has done.
    logging.getLogger().addFilter(_no_advice)
    try:
        quantization.quantize_static(
            file,
            output,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_quantize=[node.name for node in nodes],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    finally:
        logging.getLogger().removeFilter(_no_advice)
    return sum(node.op_type == "Conv" for node in nodes)


def _no_advice(line: logging.LogRecord) -> bool:
    return "pre-processing" not in line.getMessage()


def nodes_of_network(graph: Any) -> list[Any]:
    """The nodes before the last convolutions: what a convolution depends on. The last ones, those
    on which none depends, are the outputs of the heads.
    """
    by_output = {output: node for node in graph.node for output in node.output}
    before: dict[str, Any] = {}
    waiting = [name for node in graph.node if node.op_type == "Conv" for name in node.input]
    while waiting:
        node = by_output.get(waiting.pop())
        if node is not None and node.name not in before:
            before[node.name] = node
            waiting += node.input
    return [node for node in before.values() if node.op_type in QUANTISED]
