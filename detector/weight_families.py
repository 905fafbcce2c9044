"""The families of weight files: how each is recognised, how its names and tensors become those of a
`RetinaNet`, and what its names and shapes tell of the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detector.anchors import PartialAnchorShapes
from detector.backbone import BACKBONES, ResidualNetwork
from detector.checkpoint import anchors_in
from detector.choices import BackboneName, Norm
from detector.model import PIXEL_STD, RetinaNet
from detector.tensor_file import State

OWN, TORCHVISION, CLASSIFIER, DETECTRON2 = (
    "RetinaRay",
    "torchvision RetinaNet",
    "torchvision classifier",
    "detectron2 RetinaNet",
)
SIGNS = {
    OWN: "class_head.output.weight",
    TORCHVISION: "head.classification_head.cls_logits.weight",
    DETECTRON2: "head.cls_score.weight",
    CLASSIFIER: "layer1.0.conv1.weight",
}
"""A name that every file of a family has and no file of another family."""
CLASS_LAYER = ("class_head.output.weight", "class_head.output.bias")

_EPSILON = 1e-5
"""torch and detectron2 add it to a variance before the square root."""

_Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns and replacements, applied one after the other."""
_STEM: _Rules = [
    (r"^backbone\.conv1\.", "backbone.stem.0."),
    (r"^backbone\.bn1\.", "backbone.stem.1."),
]


def renamed_tensors(file: State, family: str, *, finer: bool) -> dict[str, str]:
    """Our name -> the file's name of each tensor. `finer`: our first lateral is C2's, theirs is
    C3's.
    """
    rules: _Rules = []
    if family == CLASSIFIER:
        rules = [(r"^(conv1|bn1|layer\d)\.", r"backbone.\1."), *_STEM]
    elif family == TORCHVISION:
        rules = _torchvision_rules(file, finer)
    elif family == DETECTRON2:
        rules = _detectron2_rules(finer)
    return {_renamed(name, rules): name for name in file}


def _renamed(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _torchvision_rules(file: State, finer: bool) -> _Rules:
    # A tower is convolution, (normalisation,) ReLU four times; our numbers count all of them.
    step = 3 if any(re.search(r"head\.conv\.\d\.1\.", name) for name in file) else 2
    return [
        (r"^backbone\.body\.", "backbone."),
        *_STEM,
        (r"^backbone\.fpn\.extra_blocks\.", "pyramid."),
        # Older files have neither the block around a lateral nor the one around a tower's
        # convolution.
        (
            r"^backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(?=\w+$)",
            lambda m: f"pyramid.lateral.{int(m[1]) + finer}.",
        ),
        (
            r"^backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(?=\w+$)",
            lambda m: f"pyramid.output.{int(m[1]) + finer}.",
        ),
        (r"^head\.classification_head\.", "class_head."),
        (r"^head\.regression_head\.", "box_head."),
        (r"_head\.conv\.(\d)\.(\d)\.", lambda m: f"_head.tower.{step * int(m[1]) + int(m[2])}."),
        (r"_head\.conv\.", "_head.tower."),
        (r"_head\.(cls_logits|bbox_reg)\.", "_head.output."),
    ]


def _detectron2_rules(finer: bool) -> _Rules:
    return [
        (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.stem.1."),
        (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.stem.0."),
        (r"^backbone\.bottom_up\.res(\d)\.", lambda m: f"backbone.layer{int(m[1]) - 1}."),
        (r"\.conv(\d)\.norm\.", r".bn\1."),
        (r"\.shortcut\.norm\.", ".downsample.1."),
        (r"\.shortcut\.", ".downsample.0."),
        (
            r"^backbone\.fpn_(lateral|output)(\d)\.",
            lambda m: f"pyramid.{m[1]}.{int(m[2]) - 3 + finer}.",
        ),
        (r"^backbone\.top_block\.", "pyramid."),
        (r"^head\.(cls_subnet|cls_score)\.", r"class_head.\1."),
        (r"^head\.(bbox_subnet|bbox_pred)\.", r"box_head.\1."),
        (r"_head\.(cls|bbox)_subnet\.", "_head.tower."),
        (r"_head\.(cls_score|bbox_pred)\.", "_head.output."),
    ]


def epsilon_of(file: State, family: str) -> float:
    """What the training of the file added to a variance. torchvision's first RetinaNet was trained
    with frozen normalisation of epsilon 0; frozen normalisation has no count of batches.
    """
    counted = any(name.endswith("num_batches_tracked") for name in file)
    return 0.0 if family == TORCHVISION and not counted else _EPSILON


def fold(state: State, epsilon: float) -> State:
    """Batch normalisation's four vectors -> scale and bias: w (x - mean) / sqrt(var + epsilon) + b.
    Computed in float64, rounded once.
    """
    folded = dict(state)
    for name in state:
        if name.startswith("backbone.") and name.endswith(".running_var"):
            norm = name.removesuffix("running_var")
            if any(norm + part not in folded for part in ("weight", "bias", "running_mean")):
                continue  # an incomplete file; it is refused later, with the missing names
            weight, bias, mean, variance = (
                folded.pop(norm + part).double()
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            folded.pop(norm + "num_batches_tracked", None)
            scale = weight / (variance + epsilon).sqrt()
            folded |= {norm + "scale": scale.float(), norm + "bias": (bias - mean * scale).float()}
    return folded


def convert_detectron2(state: State, model: RetinaNet) -> None:
    """In place, under our names: weights for BGR pixels less their mean -> weights for RGB pixels
    divided by our standard deviation; scale-major anchors -> ratio-major ones.
    """
    theirs = state["pixel_std"].float().flatten().flip(0) if "pixel_std" in state else torch.ones(3)
    stem = "backbone.stem.0.weight"
    if stem in state:
        state[stem] = state[stem].flip(1) * (torch.tensor(PIXEL_STD) / theirs).view(1, 3, 1, 1)
    scales, ratios = len(model.anchor_shapes["scales"]), len(model.anchor_shapes["ratios"])
    for name in (*CLASS_LAYER, "box_head.output.weight", "box_head.output.bias"):
        if name in state and len(state[name]) % (scales * ratios) == 0:
            # (scales * ratios * outputs, ...) -> (scales, ratios, outputs, ...) -> (ratios, scales,
            # outputs, ...) -> (ratios * scales * outputs, ...)
            apart = state[name].view(scales, ratios, -1, *state[name].shape[1:])
            state[name] = apart.transpose(0, 1).reshape(state[name].shape)


def parts_of(state: State, family: str) -> dict[str, Any]:
    """The settings of `RetinaNet.parts` that a file, under our names, was made with; without those
    that it does not show.
    """
    blocks = tuple(
        len({name.split(".")[2] for name in state if name.startswith(f"backbone.layer{i}.")})
        for i in range(1, 5)
    )
    second = state.get("backbone.layer1.0.conv2.weight", torch.empty(0, 0))
    bottleneck = "backbone.layer1.0.conv3.weight" in state
    parts: dict[str, Any] = {"backbone": _residual_network(blocks, second, bottleneck)}
    parts["norm"] = _norm(state)
    if bottleneck and family != OWN:
        # detectron2 halves in the 1x1 convolution unless the 3x3 ones are grouped.
        grouped = second.shape[0] != second.shape[1]
        parts["stride_in"] = "1x1" if family == DETECTRON2 and not grouped else "3x3"
    if family != CLASSIFIER:
        parts["width"] = state[CLASS_LAYER[0]].shape[1]
        parts["head_norm"] = "group" if "class_head.tower.1.weight" in state else "none"
        if "pyramid.p6.weight" in state:
            from_p5 = state["pyramid.p6.weight"].shape[1] == parts["width"]
            parts["p6_from"] = "p5" if from_p5 else "c5"
    return {name: value for name, value in parts.items() if value is not None}


def _norm(state: State) -> Norm | None:
    """The normalisation of the backbone, as far as its tensors show it."""
    ends = {name.rsplit(".", 1)[1] for name in state if name.startswith("backbone.")}
    if "running_var" in ends:
        return "batch"
    if "scale" in ends:
        return "frozen"
    return "group" if "backbone.stem.1.weight" in state else None


def _residual_network(
    blocks: tuple[int, ...], second_convolution: Tensor, bottleneck: bool
) -> BackboneName | None:
    """The name of the residual network with these numbers of blocks and this `layer1.0.conv2`."""
    shape = (blocks, tuple(second_convolution.shape[:2]), bottleneck)
    for name, network in BACKBONES.items():
        if isinstance(network, ResidualNetwork) and shape == (
            network.blocks,
            network.second_convolution,
            network.bottleneck,
        ):
            return name
    return None


def trained_anchors(path: str, family: str) -> PartialAnchorShapes:
    """What is known of the anchors that a file's heads were trained with. Our files name them; of
    other families the convention is known.
    """
    if family == OWN and path.endswith(".safetensors"):
        return anchors_in(path)
    if family == TORCHVISION:
        return {"convention": "torchvision"}
    return {"convention": "exact"} if family == DETECTRON2 else {}
