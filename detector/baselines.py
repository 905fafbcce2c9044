"""The table of the detectors that RetinaNet is compared with, and the one function that builds a
network from its description. The baselines are not tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detector.backbone import check_choice
from detector.baseline import Baseline, BaselineNetwork, refuse_no_classes
from detector.choices import BASELINE_PARTS, Architecture
from detector.detr import detr, detr_dc5
from detector.faster_rcnn import faster_rcnn, faster_rcnn_c4
from detector.fcos import fcos
from detector.model import RetinaNet
from detector.ssd import dssd, ssd
from detector.yolo import yolov2

NETWORKS: dict[Architecture, Callable[..., BaselineNetwork]] = {
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_c4": faster_rcnn_c4,
    "fcos": fcos,
    "ssd": ssd,
    "dssd": dssd,
    "yolov2": yolov2,
    "detr": detr,
    "detr_dc5": detr_dc5,
}
"""What builds each baseline; its keywords are those of `BASELINE_PARTS`."""


def build_model(*, architecture: Architecture = "retinanet", **parts: Any) -> RetinaNet | Baseline:
    """The network of a description: `parts` are the keywords of `RetinaNet`. A baseline uses those
    in `BASELINE_PARTS` and no others.
    """
    if architecture == "retinanet":
        return RetinaNet(**parts)
    check_choice("architecture", architecture, ("retinanet", *NETWORKS))
    used = {name: parts[name] for name in BASELINE_PARTS[architecture] if name in parts}
    refuse_no_classes(used["classes"])
    return Baseline(NETWORKS[architecture](**used), classes=used["classes"])
