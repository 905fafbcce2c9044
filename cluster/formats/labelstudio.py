"""Read the JSON of Label Studio: a list of tasks, each with its picture and the regions of one or
several annotators; also JSON-MIN. A bad task or region costs itself alone.

    [{"id": 7, "data": {"image": "/data/upload/1/ab12cd34-cat.jpg"},
      "annotations": [{"updated_at": "2024-05-01T10:00:00Z", "was_cancelled": false, "result": [
        {"type": "rectanglelabels", "original_width": 640, "original_height": 480, "value":
          {"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": ["cat"]}}]}]}]

Numbers are per cent of the upright picture. Polygons become their bounding boxes, as in the reader
of YOLO; turned boxes are refused, as in that of VOC, and so are regions of other kinds. Predictions
are no annotations. Of several annotators of a task the newest annotation counts that was not
cancelled. A task without one is passed over: nobody has said that its picture is empty.

The pictures are found by their names in the folder (`labelstudio_pictures`). Classes are those of a
classes.txt beside the file, in its order, else the labels that occur, sorted. Category ids count
from 1. Image ids are those of the tasks or, where these are no numbers, count from 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from posixpath import dirname
from typing import Any

from cluster.errors import DataError
from cluster.formats.annotations import MAX_ID, Findings, Keep, Source, keep_all, most_frequent
from cluster.formats.class_names import CLASSES, read_class_list
from cluster.formats.drawings import Drawing, Words, faults_of, to_source, used_labels
from cluster.formats.labelstudio_pictures import PictureNames, picture_of
from cluster.formats.labelstudio_regions import parse_results
from cluster.formats.numbers import as_whole
from cluster.storage import files
from cluster.storage.pictures import list_pictures
from cluster.storage.uris import join

OLDER = "annotations of a task that has a newer one, which is taken"
UNLABELLED = "a task without an annotation, or with cancelled ones alone"
NO_TASK = "the task is not an object"
WORDS = Words(
    renumbered="task ids that are no numbers, counted from 1 instead",
    same_name="another task has the same picture",
    unknown_label=f"its label is not in {CLASSES}",
)


def read_labelstudio(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read the JSON file `annotations` of the pictures in the folder `images`. `DataError` where it
    is no list of tasks, or no task or class is in it.

    Images whose file name `keep` turns down belong to another split: they and their regions count
    as not listed.
    """
    data = files.read_bytes(annotations)
    content = files.parse_json(data, annotations)
    if not isinstance(content, list) or not content:
        raise DataError(
            f"{annotations}: not a Label Studio file: it holds no list of tasks; export it as JSON"
        )
    pictures = [uri[len(images) + 1 :] for uri in list_pictures(images).uris]
    findings = Findings()
    passed: dict[str, int] = {}
    tasks = _parse(_whole_tasks(content), PictureNames(pictures), findings, passed)
    if not tasks:
        raise DataError(
            f"{annotations}: none of its {len(content)} tasks has an annotation that was not"
            " cancelled; label some and export it again"
        )
    names = _class_names(annotations, tasks)
    identity = [names, hashlib.sha256(data).hexdigest(), *(task.file_name for task in tasks)]
    return to_source(
        tasks,
        names,
        keep,
        findings,
        WORDS,
        digest=hashlib.sha256(repr(identity).encode()).hexdigest(),
        passed_over=passed,
        normalised=True,
    )


def _class_names(uri: str, tasks: Sequence[Drawing]) -> list[str]:
    listed = join(dirname(uri), CLASSES)
    if files.exists(listed):
        names = read_class_list(listed)
    else:
        names = used_labels(tasks)
    if not names:
        raise DataError(
            f"{uri}: no usable box in any task ({most_frequent(faults_of(tasks))}); a detector"
            " needs at least one class"
        )
    return names


def _whole_tasks(content: Sequence[Any]) -> list[Any]:
    """Tasks in the form of JSON. JSON-MIN has an item for each annotation: those of one task are
    joined.
    """
    tasks: list[Any] = []
    joined: dict[object, dict[str, Any]] = {}
    for item in content:
        if not isinstance(item, dict) or "data" in item:
            tasks.append(item)
            continue
        found = item.get("id")
        key = found if isinstance(found, (int, str)) else len(tasks)
        if key not in joined:
            joined[key] = {"id": found, "data": item, "annotations": []}
            tasks.append(joined[key])
        results = _min_results(item)
        if results or "annotation_id" in item or "annotator" in item:
            joined[key]["annotations"].append({**item, "result": results})
    return tasks


def _min_results(item: Mapping[str, Any]) -> list[Any]:
    """The regions of a JSON-MIN item as results: its lists of objects with a list of labels."""
    return [
        {"type": kind, "value": value}
        for values in item.values()
        if isinstance(values, list)
        for value in values
        if isinstance(value, dict)
        for kind in [next((name for name in value if str(name).endswith("labels")), "region")]
    ]


def _parse(
    items: Sequence[Any], pictures: PictureNames, findings: Findings, passed: dict[str, int]
) -> list[Drawing]:
    """The tasks that somebody has annotated. What is passed over is counted in `passed`."""
    tasks = []
    for item in items:
        if not isinstance(item, dict):
            tasks.append(Drawing(None, "?", [], NO_TASK, item))
            continue
        given = item.get("annotations", item.get("completions"))
        valid = [one for one in given if _counts(one)] if isinstance(given, list) else []
        if not valid:
            passed[UNLABELLED] = passed.get(UNLABELLED, 0) + 1
            continue
        findings.repairs[OLDER] += len(valid) - 1
        # Of annotations of one time, the one that stands last in the file.
        newest = max(enumerate(valid), key=lambda pair: (_time(pair[1]), pair[0]))[1]
        regions = parse_results(newest["result"], passed)
        name = picture_of(item.get("data"))
        file, fault = pictures.find(name)
        id_ = as_whole(item.get("id"))
        id_ = id_ if id_ is not None and 0 <= id_ <= MAX_ID else None
        raw = {"task": id_, "data": item.get("data"), "annotations": len(regions)}
        tasks.append(Drawing(id_, file or name or "?", regions, fault, raw))
    return tasks


def _counts(annotation: object) -> bool:
    return (
        isinstance(annotation, dict)
        and isinstance(annotation.get("result"), list)
        and not annotation.get("was_cancelled")
        and not annotation.get("cancelled")
    )


def _time(annotation: Mapping[str, Any]) -> datetime:
    for name in ("updated_at", "created_at"):
        try:
            found = datetime.fromisoformat(annotation.get(name) or "")
        except (TypeError, ValueError):
            continue
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return datetime.min.replace(tzinfo=UTC)
