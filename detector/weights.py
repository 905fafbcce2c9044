"""Weight files, others' and our own, into a RetinaNet: names are translated, batch normalisation is
folded, what does not belong is refused.
"""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from detector.checkpoint import anchors_in
from detector.model import PIXEL_STD, RetinaNet

EPSILON = 1e-5
"""What torch and detectron2 add to a variance before its root."""
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
"""A name that every file of a family has and no other family's."""
BACKBONES = {
    (2, 2, 2, 2, 64, 64, False): "resnet18",
    (3, 4, 6, 3, 64, 64, False): "resnet34",
    (3, 4, 6, 3, 64, 64, True): "resnet50",
    (3, 4, 23, 3, 64, 64, True): "resnet101",
    (3, 8, 36, 3, 64, 64, True): "resnet152",
    (3, 4, 6, 3, 128, 4, True): "resnext50_32x4d",
    (3, 4, 23, 3, 256, 8, True): "resnext101_32x8d",
    (3, 4, 23, 3, 256, 4, True): "resnext101_64x4d",
}
"""Blocks of the four layers, output and input channels of the first block's second convolution,
whether there is a third.
"""
CLASS_LAYER = ("class_head.output.weight", "class_head.output.bias")

State = dict[str, Tensor]
Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]


@dataclass(frozen=True)
class PretrainedReport:
    """What became of a weight file."""

    source: str
    """Whose file it is, a key of `SIGNS`."""
    loaded: int
    """Tensors of the model that now hold the file's values."""
    reinitialised: tuple[str, ...]
    """The class layer, where the file has another number of classes: it keeps the model's own
    start.
    """
    missing: tuple[str, ...]
    """Names of the model that the file has nothing for, such as pyramid and heads after a
    classifier's file.
    """
    unused: tuple[str, ...]
    """Names of the file that the model has no place for."""
    notes: tuple[str, ...]
    """Settings that would fit the file better; none of them keeps it from being loaded."""


def load_pretrained(model: RetinaNet, path: str) -> PretrainedReport:
    """Put the weights of a file into the model, in place. What is read, turned and refused: see
    `fitting`.
    """
    state, report = fitting(model, path)
    model.load_state_dict(state, strict=False)
    return report


@torch.no_grad()
def fitting(model: RetinaNet, path: str) -> tuple[State, PretrainedReport]:
    """What a file holds for the model, under the model's names. Nothing is put into it, so it may
    lie on the meta device, which costs no memory.

    Read are .safetensors, torch's own format (tensors only) and detectron2's .pkl (numpy arrays
    only); recognised by their names are our own files, torchvision's `retinanet_resnet50_fpn` (both
    generations of names) and `_v2`, its residual classifiers, and detectron2's RetinaNet, whose BGR
    input, pixel spread and anchor order are turned into ours. Where the model's normalisation is
    frozen, batch normalisation is folded into it. Another number of classes re-initialises the
    class layer alone. `ValueError` where the file is of another architecture.
    """
    file = read_tensors(path)
    source = next((name for name, sign in SIGNS.items() if sign in file), None)
    if source is None:
        raise ValueError(
            f"pretrained {path}: the names in it ({', '.join(list(file)[:3])}, ...) are not known;"
            f" it must be a file of {', '.join(SIGNS)}; give one of those"
        )
    rules = renaming(file, source, finer=model.anchor_shapes["strides"][0] == 4)
    names = {renamed(name, rules): name for name in file}
    state = {ours: file[name] for ours, name in names.items()}
    anchors = trained_anchors(path, source)
    refuse_misfits(path, source, state, model, anchors)
    epsilon = 0.0 if trained_without_epsilon(file, source) else EPSILON
    if model.parts["norm"] == "frozen":
        state = fold(state, epsilon)
    if source == DETECTRON2:
        from_detectron2(state, model)

    own = model.state_dict()
    rows, a_position = (
        len(state.get(CLASS_LAYER[0], ())),
        len(own[CLASS_LAYER[0]]) // model.classes,
    )
    reinitialised = (
        CLASS_LAYER
        if rows != model.classes * a_position and rows % a_position == 0 and rows
        else ()
    )
    state = {name: value for name, value in state.items() if name not in reinitialised}
    missing = [
        name
        for name in own
        if name not in state
        and name not in reinitialised
        and not name.endswith("num_batches_tracked")
    ]
    unused = [name for name in state if name not in own]
    refuse_differences(path, source, state, model, missing, unused)
    report = PretrainedReport(
        source=source,
        loaded=len(state) - len(unused),
        reinitialised=reinitialised,
        missing=tuple(missing),
        unused=tuple(names[name] for name in unused),
        notes=tuple(notes(anchors, model, epsilon)),
    )
    return {name: value for name, value in state.items() if name in own}, report


def read_tensors(path: str) -> State:
    """Every tensor of the file by its name. Nothing but tensors and arrays is built of what the
    file says, whatever it says.
    """
    if not os.path.isfile(path):
        raise ValueError(f"pretrained {path}: there is no such file; check the path")
    try:
        if path.endswith(".safetensors"):
            content: Any = load_file(path)
        elif path.endswith(".pkl"):
            with open(path, "rb") as file:
                content = ArraysOnly(file, encoding="latin1").load()
        else:
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # what a damaged or foreign file raises is not a closed list
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"pretrained {path}: cannot be read ({reason}); it must hold tensors alone, complete;"
            " download or save it again"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(
            f"pretrained {path}: holds a {type(content).__name__}; it must be a dictionary of names"
            " and tensors; save a state_dict()"
        )
    arrays = {
        name: (
            torch.from_numpy(value)
            if isinstance(value, np.ndarray) and value.dtype != object
            else value
        )
        for name, value in content.items()
    }
    return {name: value for name, value in arrays.items() if isinstance(value, Tensor)}


RECONSTRUCT, SCALAR = np.empty(1).__reduce__()[0], np.float32(0).__reduce__()[0]
ADMITTED: dict[tuple[str, str], Any] = {
    # numpy 2 moved its private module; older files name the old one.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): SCALAR for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    # How protocol 2 writes bytes; the codec is not the file's to choose.
    ("_codecs", "encode"): lambda text, codec: text.encode("latin1"),
}


class ArraysOnly(pickle.Unpickler):
    """Unpickles containers, numbers, text and numpy arrays. A pickle may name any function to be
    called; all but `ADMITTED` are refused.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not an array")
        return ADMITTED[module, name]


def renaming(file: State, source: str, *, finer: bool) -> Rules:
    """How a family's names become ours: patterns and replacements, applied one after the other.
    `finer`: our first lateral is C2's, theirs C3's.
    """
    stem: Rules = [
        (r"^backbone\.conv1\.", "backbone.stem.0."),
        (r"^backbone\.bn1\.", "backbone.stem.1."),
    ]
    if source == OWN:
        return []
    if source == CLASSIFIER:
        return [(r"^(conv1|bn1|layer\d)\.", r"backbone.\1."), *stem]
    if source == TORCHVISION:
        # A tower is convolution, (normalisation,) ReLU four times; ours counts them through.
        step = 3 if any(re.search(r"head\.conv\.\d\.1\.", name) for name in file) else 2
        return [
            (r"^backbone\.body\.", "backbone."),
            *stem,
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
            (
                r"_head\.conv\.(\d)\.(\d)\.",
                lambda m: f"_head.tower.{step * int(m[1]) + int(m[2])}.",
            ),
            (r"_head\.conv\.", "_head.tower."),
            (r"_head\.(cls_logits|bbox_reg)\.", "_head.output."),
        ]
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


def renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def trained_without_epsilon(file: State, source: str) -> bool:
    """torchvision's first RetinaNet was trained with frozen normalisation of epsilon 0, and frozen
    normalisation has no count of batches.
    """
    return source == TORCHVISION and not any(name.endswith("num_batches_tracked") for name in file)


def fold(state: State, epsilon: float) -> State:
    """Batch normalisation's four vectors -> scale and bias: w (x - mean) / sqrt(var + epsilon) + b.
    In float64, rounded once.
    """
    folded = dict(state)
    for name in state:
        if name.startswith("backbone.") and name.endswith(".running_var"):
            norm = name.removesuffix("running_var")
            if any(norm + part not in folded for part in ("weight", "bias", "running_mean")):
                continue  # an incomplete file, which is refused for what it lacks
            weight, bias, mean, variance = (
                folded.pop(norm + part).double()
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            folded.pop(norm + "num_batches_tracked", None)
            scale = weight / (variance + epsilon).sqrt()
            folded |= {norm + "scale": scale.float(), norm + "bias": (bias - mean * scale).float()}
    return folded


def from_detectron2(state: State, model: RetinaNet) -> None:
    """Turn, in place, BGR pixels less their mean into RGB divided by our spread, and scale-major
    anchors into ratio-major ones.
    """
    theirs = state["pixel_std"].float().flatten().flip(0) if "pixel_std" in state else torch.ones(3)
    stem = "backbone.stem.0.weight"
    if stem in state:
        state[stem] = state[stem].flip(1) * (torch.tensor(PIXEL_STD) / theirs).view(1, 3, 1, 1)
    scales, ratios = (len(model.anchor_shapes[name]) for name in ("scales", "ratios"))
    for name in (*CLASS_LAYER, "box_head.output.weight", "box_head.output.bias"):
        if name in state and len(state[name]) % (scales * ratios) == 0:
            # (scales * ratios * outputs, ...) -> (scales, ratios, outputs, ...) -> (ratios, scales,
            # outputs, ...) -> (ratios * scales * outputs, ...)
            apart = state[name].view(scales, ratios, -1, *state[name].shape[1:])
            state[name] = apart.transpose(0, 1).reshape(state[name].shape)


def parts_of(state: State, source: str) -> dict[str, Any]:
    """What a file, under our names, tells of the settings in `RetinaNet.parts` that it was made
    with; None where it does not tell.
    """
    depths = tuple(
        len({name.split(".")[2] for name in state if name.startswith(f"backbone.layer{i}.")})
        for i in range(1, 5)
    )
    second = state.get("backbone.layer1.0.conv2.weight", torch.empty(0, 0))
    bottleneck = "backbone.layer1.0.conv3.weight" in state
    parts: dict[str, Any] = {"backbone": BACKBONES.get((*depths, *second.shape[:2], bottleneck))}
    statistics, folded = ("backbone.stem.1." + part in state for part in ("running_var", "scale"))
    parts["norm"] = "batch" if statistics else "frozen" if folded else "group"
    if bottleneck and source != OWN:
        # detectron2 halves in the 1x1 convolution unless the 3x3 ones are grouped.
        grouped = second.shape[0] != second.shape[1]
        parts["stride_in"] = "1x1" if source == DETECTRON2 and not grouped else "3x3"
    if source != CLASSIFIER:
        parts["width"] = state[CLASS_LAYER[0]].shape[1]
        parts["head_norm"] = "group" if "class_head.tower.1.weight" in state else "none"
        if "pyramid.p6.weight" in state:
            parts["p6_from"] = (
                "p5" if state["pyramid.p6.weight"].shape[1] == parts["width"] else "c5"
            )
    return {name: value for name, value in parts.items() if value is not None}


def trained_anchors(path: str, source: str) -> dict[str, Any]:
    """What is known of the `anchor_shapes` that a file's heads were trained with: ours say it, of
    other families' files the convention is known.
    """
    if source == OWN and path.endswith(".safetensors"):
        return anchors_in(path)
    return {TORCHVISION: {"convention": "torchvision"}, DETECTRON2: {"convention": "exact"}}.get(
        source, {}
    )


def refuse_misfits(
    path: str, source: str, state: State, model: RetinaNet, anchors: dict[str, Any]
) -> None:
    """`ValueError` where settings of the model contradict what the file shows, naming the settings
    that fit.
    """
    theirs, ours = parts_of(state, source), dict(model.parts)
    if theirs["norm"] == "batch" and ours["norm"] in ("batch", "sync", "frozen"):
        theirs["norm"] = ours["norm"]
    elif theirs["norm"] == "batch":
        theirs["norm"] = "frozen"
    if model.pyramid.p6 is None:
        theirs.pop("p6_from", None)
    wrong = [
        (f"model.{name}", ours[name], value)
        for name, value in theirs.items()
        if ours[name] != value
    ]
    if anchors.get("strides", model.anchor_shapes["strides"]) != model.anchor_shapes["strides"]:
        wrong += [
            (
                "model.anchors.strides",
                *(
                    ",".join(map(str, shapes["strides"]))
                    for shapes in (model.anchor_shapes, anchors)
                ),
            )
        ]
    if "box_head.output.weight" in state:
        found = state["box_head.output.weight"].shape[0] // 4
        own = len(model.anchor_shapes["scales"]) * len(model.anchor_shapes["ratios"])
        wrong += [("model.anchors with scales x ratios", own, found)] if found != own else []
    if wrong:
        raise ValueError(
            f"pretrained {path}: a {source} file of another architecture"
            f" ({'; '.join(f'{n} is {a} here, {b} in the file' for n, a, b in wrong)}); weights fit"
            " only what they were trained in; set"
            f" {', '.join(f'{name} {value}' for name, _, value in wrong)}, or give another file"
        )


def refuse_differences(
    path: str, source: str, state: State, model: RetinaNet, missing: list[str], unused: list[str]
) -> None:
    """`ValueError` where a shape differs, the file has residual blocks too many or too few, or a
    detector's file lacks a part of a detector.
    """
    own = model.state_dict()
    finest = (
        ("pyramid.lateral.0.", "pyramid.output.0.")
        if model.anchor_shapes["strides"][0] == 4 and source != OWN
        else ()
    )
    lacking = [
        name
        for name in missing
        if name.startswith("backbone.") or (source != CLASSIFIER and not name.startswith(finest))
    ]
    layers = {name.split(".")[1] for name in own if name.startswith("backbone.")}
    wrong = [f"{name} is missing" for name in lacking]
    wrong += [
        f"{name} is unknown"
        for name in unused
        if name.startswith("backbone.") and name.split(".")[1] in layers
    ]
    wrong += [
        f"{name} is {tuple(value.shape)} where the model has {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"pretrained {path}: a {source} file of another architecture ({'; '.join(wrong[:3])};"
            f" {len(wrong)} differences); weights fit only what they were trained in; use the model"
            " settings of that training, or give another file"
        )


def notes(anchors: dict[str, Any], model: RetinaNet, epsilon: float) -> list[str]:
    found = []
    for name, value in anchors.items():
        if model.anchor_shapes.get(name) != value:
            shown = (
                ",".join(f"{number:.6g}" for number in value) if isinstance(value, tuple) else value
            )
            found.append(
                f"model.anchors.{name} {shown} makes the anchors that this file was trained with"
            )
    if epsilon == 0 and model.parts["norm"] != "frozen":
        found.append(
            "model.norm frozen reproduces this file exactly, it was trained with an epsilon of 0"
        )
    return found
