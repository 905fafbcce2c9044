"""Images with the shapes that people drew on them -> a `Source`. The readers of labelling tools,
`cvat` and `labelstudio`, share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cluster.formats.annotations import (
    Annotation,
    Box,
    Findings,
    ImageRecord,
    Keep,
    Source,
    images_of_records,
)
from cluster.shards.format import Category

TURNED = "it is a turned box (rotation); boxes along the axes are needed"


class Shape(NamedTuple):
    """`fault` is why it cannot be used, `detail` the values that belong to it; then `box` means
    nothing. `repair` says what was done to it. `raw` is for the quarantine.
    """

    label: str
    box: Box
    fault: str | None
    repair: str | None
    raw: Any
    detail: str = ""


class Drawing(NamedTuple):
    """An image. `id` is None where the file gives none that can be used."""

    id: int | None
    file_name: str
    shapes: list[Shape]
    fault: str | None
    raw: Any
    height: int | None = None
    width: int | None = None


class Words(NamedTuple):
    """What is said, in the terms of the tool."""

    renumbered: str
    same_name: str
    unknown_label: str


def used_labels(drawings: Sequence[Drawing]) -> list[str]:
    """The labels of all usable shapes, sorted."""
    return sorted({one.label for drawing in drawings for one in drawing.shapes if not one.fault})


def faults_of(drawings: Sequence[Drawing]) -> list[str]:
    return [one.fault for drawing in drawings for one in drawing.shapes if one.fault is not None]


def to_source(
    drawings: Sequence[Drawing],
    names: Sequence[str],
    keep: Keep,
    findings: Findings,
    words: Words,
    *,
    digest: str,
    passed_over: Mapping[str, int],
    normalised: bool = False,
) -> Source:
    """The drawings of all splits, of which `keep` chooses; `names` are the classes by label."""
    ids = [drawing.id for drawing in drawings if drawing.id is not None]
    if len(set(ids)) < len(drawings):
        findings.repairs[words.renumbered] += len(drawings)
        drawings = [one._replace(id=number) for number, one in enumerate(drawings, start=1)]
    listed = [drawing for drawing in drawings if keep(drawing.file_name)]
    records, lost = _read_records(listed, names, findings, words)
    return Source(
        categories=tuple(Category(label, label + 1, name) for label, name in enumerate(names)),
        images=images_of_records(records, normalised=normalised),
        quarantined=tuple(findings.quarantined),
        repairs=dict(+findings.repairs),
        listed=len(listed),
        annotated=sum(len(drawing.shapes) for drawing in listed),
        lost=lost,
        largest_id=max(drawing.id or 0 for drawing in drawings),
        digest=digest,
        passed_over=passed_over,
    )


def _read_records(
    drawings: Sequence[Drawing], names: Sequence[str], findings: Findings, words: Words
) -> tuple[list[ImageRecord], int]:
    """The usable images, and the number of shapes that are lost with the others."""
    labels = {name: label for label, name in enumerate(names)}
    records: dict[str, ImageRecord] = {}
    lost = 0
    for drawing in drawings:
        name = drawing.file_name
        fault = drawing.fault or (words.same_name if name in records else None)
        if fault is not None:
            findings.reject("image", name or "?", fault, drawing.raw)
            lost += len(drawing.shapes)
            continue
        found = []
        for number, shape in enumerate(drawing.shapes, start=1):
            fault = shape.fault or (None if shape.label in labels else words.unknown_label)
            if fault is not None:
                raw, where = {"file_name": name, "shape": shape.raw}, f"{number} of {name}"
                findings.reject("annotation", where, fault, raw, detail=shape.detail)
                continue
            found.append(Annotation(number, labels[shape.label], shape.box, False, None))
            if shape.repair is not None:
                findings.repairs[shape.repair] += 1
        records[name] = ImageRecord(
            drawing.id or 0, name, drawing.height, drawing.width, tuple(found)
        )
    return list(records.values()), lost
