"""What a reader must know of a registered version: the description that MLflow shows of it
(Mitchell et al., Model Cards for Model Reporting, FAT* 2019), from what the run's folder says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import on_one_line
from cluster.runs.evaluations import Evaluation
from cluster.shards.index import open_shard_set
from detector.scores import shown

SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
WEAK = 0.1
"""AP below which a class is named among the limits."""
LEFT_OUT = "\n\nThe other classes are in model_card.md of the run."
DESCRIPTION = 5000
"""Characters that the registry keeps of a description."""


def short_card(card: str) -> str:
    """The card as a description: of a card that is too long the last classes are left out."""
    if len(card) <= DESCRIPTION:
        return card
    head, table, rest = _around_classes(card)
    room = DESCRIPTION - len(head) - len(rest) - len(LEFT_OUT)
    kept: list[str] = []
    for row in table:
        room -= len(row) + 1
        if room < 0:
            break
        kept.append(row)
    return (head + "\n".join(kept) + LEFT_OUT + rest)[:DESCRIPTION]


def _around_classes(card: str) -> tuple[str, list[str], str]:
    """The card before its table of classes, the rows of that, and what follows."""
    head, title, rest = card.partition("## Classes\n\n")
    table, empty, rest = rest.partition("\n\n")
    return head + title, table.splitlines(), empty + rest


def model_card(
    name: str,
    best: Evaluation,
    config: Mapping[str, Any],
    *,
    interval: tuple[float, float] | None,
    run: str,
    digest: str,
    licence: str | None,
) -> str:
    """Markdown. `config` is that of the run, `digest` that of the package, `interval` that of AP
    with 95 %; None where it is not known.
    """
    model, canvas, decode = (config.get(part, {}) for part in ("model", "canvas", "decode"))
    architecture = model.get("architecture", "retinanet")
    backbone = "DarkNet-19" if architecture == "yolov2" else model.get("backbone", "?")
    parts = [
        f"# {name}",
        f"A {_words(architecture)} on a {backbone} that detects {len(best.per_class)} classes.",
        "## How good it is",
        _scores(best, interval),
        "## Classes",
        _classes(best.per_class),
        "## Data",
        *(_data(split, config.get("data", {}).get(split)) for split in ("train", "val")),
        "## Use",
        _lines(
            {
                "canvas": _canvas(canvas),
                "score threshold": decode.get("score_threshold", "?"),
                "NMS threshold": decode.get("nms_threshold", "?"),
                "detections of an image, at most": decode.get("max_detections", "?"),
            }
        ),
        "## Limits",
        _limits(best),
        "## Where it comes from",
        _lines(
            {
                "run": run,
                "checkpoint": best.checkpoint,
                "weights": "moving average" if best.weights == "ema" else "as trained",
                "images seen": best.images_seen,
                "epoch": best.epoch,
                "started from": config.get("pretrained")
                or config.get("from_checkpoint")
                or "random weights",
                "seed": config.get("training", {}).get("seed", "?"),
                "sha256 of the package": digest,
            }
        ),
        "## Licence",
        on_one_line(licence) if licence else "Not stated; `register --licence TEXT` states it.",
    ]
    return "\n\n".join(parts) + "\n"


def _words(architecture: str) -> str:
    return {"retinanet": "RetinaNet"}.get(architecture, architecture)


def _scores(best: Evaluation, interval: tuple[float, float] | None) -> str:
    head = [f"| {' | '.join(SUMMARY)} |", "|" + "---|" * len(SUMMARY)]
    row = f"| {' | '.join(shown(best.metrics.get(name), 3) for name in SUMMARY)} |"
    images = "" if best.images_evaluated is None else f" of {best.images_evaluated} images"
    note = (
        f"COCO's numbers on the validation set{images}. The checkpoint was chosen by its AP on this"
        " very set, so on new images it is a little worse."
    )
    spread = (
        "The interval of AP is not known; `evaluate` before `register` finds it."
        if interval is None
        else f"The 95 % interval of AP is {shown(interval[0], 3)} to {shown(interval[1], 3)}"
        " (bootstrap over the images)."
    )
    return "\n".join([*head, row]) + f"\n\n{note} {spread}"


def _classes(per_class: Mapping[str, float | None]) -> str:
    rows = [f"| {_cell(name)} | {shown(ap, 3)} |" for name, ap in per_class.items()]
    return "\n".join(["| class | AP |", "|---|---|", *rows])


def _data(split: str, uri: str | None) -> str:
    if uri is None:
        return f"- {split}: not known"
    try:
        shard_set = open_shard_set(uri)
    except Exception as error:  # the set may be gone; the model is here
        return f"- {split}: {uri}, which cannot be read now ({on_one_line(str(error))[:200]})"
    counts = shard_set.counts
    return (
        f"- {split}: {uri}, {counts.images} images, {counts.objects} objects, sha256"
        f" {shard_set.digest}"
    )


def _canvas(canvas: Mapping[str, Any]) -> str:
    if canvas.get("shapes"):
        return f"{len(canvas['shapes'])} shapes, pictures are scaled onto the one that fits"
    return f"{canvas.get('height', '?')} x {canvas.get('width', '?')} px"


def _limits(best: Evaluation) -> str:
    limits = [
        f"- {size} objects: the validation set has none, so nothing is known of them"
        for size in ("small", "medium", "large")
        if best.metrics.get(f"AP_{size}") is None
    ]
    weak = [name for name, ap in best.per_class.items() if ap is not None and ap < WEAK]
    if weak:
        limits.append(f"- AP below {WEAK:g}: {_some(weak)}")
    unseen = [name for name, ap in best.per_class.items() if ap is None]
    if unseen:
        limits.append(f"- the validation set has no object of: {_some(unseen)}")
    limits.append("- pictures unlike those of the training set: `predict` names what drifts")
    return "\n".join(limits)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(_cell, names[:10])) + more


def _lines(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _cell(text: str) -> str:
    """A class name inside a table of Markdown."""
    escaped = on_one_line(text)
    for character in "\\|<>`*_[]":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped
