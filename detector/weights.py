"""Weight files of other projects, and our own, into a RetinaNet: names are translated, batch
normalisation is folded, a file of another architecture is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detector.anchors import PartialAnchorShapes
from detector.model import RetinaNet
from detector.tensor_file import State, read_tensors
from detector.weight_families import (
    CLASS_LAYER,
    CLASSIFIER,
    DETECTRON2,
    OWN,
    SIGNS,
    convert_detectron2,
    epsilon_of,
    fold,
    parts_of,
    renamed_tensors,
    trained_anchors,
)


@dataclass(frozen=True)
class PretrainedReport:
    """What became of a weight file."""

    source: str
    """Whose file it is, a key of `SIGNS`."""
    loaded: int
    """Number of the model's tensors that now have the file's values."""
    reinitialised: tuple[str, ...]
    """The class layer, where the file has another number of classes: it keeps the model's own
    initial values.
    """
    missing: tuple[str, ...]
    """Names of the model that are not in the file, such as pyramid and heads after a classifier's
    file.
    """
    unused: tuple[str, ...]
    """Names of the file that are not in the model."""
    notes: tuple[str, ...]
    """Settings that would fit the file better; the file is loaded without them too."""


def load_pretrained(model: RetinaNet, path: str) -> PretrainedReport:
    """Put the weights of a file into the model, in place. See `fitting` for what is read, converted
    and refused.
    """
    state, report = fitting(model, path)
    model.load_state_dict(state, strict=False)
    return report


@torch.no_grad()
def fitting(model: RetinaNet, path: str) -> tuple[State, PretrainedReport]:
    """The tensors of a file for the model, under the model's names. The model is not changed, so it
    may be on the meta device, which takes no memory.

    It reads .safetensors, torch's own format (tensors only) and detectron2's .pkl (numpy arrays
    only). It recognises by their names our own files, torchvision's `retinanet_resnet50_fpn` (both
    generations of names) and `_v2`, its residual classifiers, and detectron2's RetinaNet, whose BGR
    input, pixel scaling and anchor order are converted to ours. Where the model's normalisation is
    frozen, batch normalisation is folded into it. Another number of classes re-initialises the
    class layer alone. `ValueError` where the file is of another architecture.
    """
    file = read_tensors(path)
    family = next((name for name, sign in SIGNS.items() if sign in file), None)
    if family is None:
        raise ValueError(
            f"pretrained {path}: the names in it ({', '.join(list(file)[:3])}, ...) are not known;"
            f" it must be a file of {', '.join(SIGNS)}; give one of those"
        )
    names = renamed_tensors(file, family, finer=model.anchor_shapes["strides"][0] == 4)
    state = {ours: file[name] for ours, name in names.items()}
    anchors, epsilon = trained_anchors(path, family), epsilon_of(file, family)
    _refuse_other_settings(path, family, state, model, anchors)
    if model.parts["norm"] == "frozen":
        state = fold(state, epsilon)
    if family == DETECTRON2:
        convert_detectron2(state, model)

    own = model.state_dict()
    reinitialised = _reinitialised(state, own, model.classes)
    state = {name: value for name, value in state.items() if name not in reinitialised}
    missing = [
        name
        for name in own
        if name not in state
        and name not in reinitialised
        and not name.endswith("num_batches_tracked")
    ]
    unused = [name for name in state if name not in own]
    _refuse_differences(path, family, state, model, missing, unused)
    report = PretrainedReport(
        source=family,
        loaded=len(state) - len(unused),
        reinitialised=reinitialised,
        missing=tuple(missing),
        unused=tuple(names[name] for name in unused),
        notes=tuple(_notes(anchors, model, epsilon)),
    )
    return {name: value for name, value in state.items() if name in own}, report


def _reinitialised(state: State, own: dict[str, Tensor], classes: int) -> tuple[str, ...]:
    """The class layer where the file has a whole number of classes, but another one."""
    rows = len(state.get(CLASS_LAYER[0], ()))
    anchors_a_position = len(own[CLASS_LAYER[0]]) // classes
    other = rows != classes * anchors_a_position and rows % anchors_a_position == 0 and rows > 0
    return CLASS_LAYER if other else ()


def _refuse_other_settings(
    path: str, family: str, state: State, model: RetinaNet, anchors: PartialAnchorShapes
) -> None:
    """`ValueError` where settings of the model contradict what the file shows; it names the
    settings that fit.
    """
    theirs, ours = parts_of(state, family), dict(model.parts)
    if theirs.get("norm") == "batch":
        fitting_norms = ("batch", "sync", "frozen")
        theirs["norm"] = ours["norm"] if ours["norm"] in fitting_norms else "frozen"
    if model.pyramid.p6 is None:
        theirs.pop("p6_from", None)
    wrong = [
        (f"model.{name}", ours[name], value)
        for name, value in theirs.items()
        if ours[name] != value
    ]
    strides = model.anchor_shapes["strides"]
    if (trained := anchors.get("strides", strides)) != strides:
        here, in_file = (",".join(map(str, each)) for each in (strides, trained))
        wrong.append(("model.anchors.strides", here, in_file))
    if "box_head.output.weight" in state:
        in_file = state["box_head.output.weight"].shape[0] // 4
        here = len(model.anchor_shapes["scales"]) * len(model.anchor_shapes["ratios"])
        if in_file != here:
            wrong.append(("model.anchors with scales x ratios", here, in_file))
    if wrong:
        raise ValueError(
            f"pretrained {path}: a {family} file of another architecture"
            f" ({'; '.join(f'{n} is {a} here, {b} in the file' for n, a, b in wrong)}); weights fit"
            " only what they were trained in; set"
            f" {', '.join(f'{name} {value}' for name, _, value in wrong)}, or give another file"
        )


def _refuse_differences(
    path: str, family: str, state: State, model: RetinaNet, missing: list[str], unused: list[str]
) -> None:
    """`ValueError` where a shape differs, the file has too many or too few residual blocks, or a
    detector's file lacks a part of a detector.
    """
    own = model.state_dict()
    # The level of C2 is new where the file has none.
    finer = model.anchor_shapes["strides"][0] == 4 and family != OWN
    new = ("pyramid.lateral.0.", "pyramid.output.0.") if finer else ()
    lacking = [
        name
        for name in missing
        if name.startswith("backbone.") or (family != CLASSIFIER and not name.startswith(new))
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
            f"pretrained {path}: a {family} file of another architecture ({'; '.join(wrong[:3])};"
            f" {len(wrong)} differences); weights fit only what they were trained in; use the model"
            " settings of that training, or give another file"
        )


def _notes(anchors: PartialAnchorShapes, model: RetinaNet, epsilon: float) -> list[str]:
    notes = []
    for name, value in anchors.items():
        if model.anchor_shapes.get(name) != value:
            shown = (
                ",".join(f"{number:.6g}" for number in value) if isinstance(value, tuple) else value
            )
            notes.append(
                f"model.anchors.{name} {shown} makes the anchors that this file was trained with"
            )
    if epsilon == 0 and model.parts["norm"] != "frozen":
        notes.append(
            "model.norm frozen reproduces this file exactly, it was trained with an epsilon of 0"
        )
    return notes
