"""Read and validate COCO JSON. One bad record costs that record: it goes to the quarantine with the
reason.

Only what makes the whole file ambiguous is an error: JSON that cannot be parsed, no images, no
categories, ids used twice.

The file is read record by record (`json_stream`) into columns (`records.Images`), and its lists may
come in any order. A file of 118k images and 860k annotations with polygons (547 MB) takes 226 MB of
memory and 19 s of CPU time; `json.load` alone takes 3392 MB and 21 s of it, and the same checks on
what it returns took 3940 MB and 33 s (tests/benchmarks/prepare.py).
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.errors import DataError, UsageError
from cluster.formats import json_stream
from cluster.formats.annotations import MAX_ID, NO_ID, Findings, Source, is_id, make_images, some
from cluster.formats.names import fault_of_name, inside_folder, is_text
from cluster.shards.format import Category
from cluster.storage import files

WHOLE_NUMBERS = "ids given as numbers with a point, taken as integers"
UNKNOWN_IMAGE = "its image_id is not in the list of images"
UNKNOWN_CATEGORY = "its category_id is not in the list of categories"
NO_CROWD = 2
"""In the column of iscrowd: the record has none."""


def read_coco(uri: str, keep: Callable[[str], bool] = lambda name: True) -> Source:
    """Read one COCO JSON. `UsageError` when it is not there, `DataError` when the whole file cannot
    be used (see the top of this file).

    Labels count the categories by ascending id, so the same categories give the same labels in
    every split. Images whose file name `keep` turns down belong to another split: they and their
    annotations are as if not listed.
    """
    reading = Reading(keep)
    take = {
        "images": reading.take_image,
        "annotations": reading.take_annotation,
        "categories": reading.categories.append,
    }
    try:
        with files.open_input(uri) as file:
            met, digest = json_stream.read_lists(file, uri, take)
    except FileNotFoundError:
        raise UsageError(f"{uri}: there is no such annotation file; check --annotations") from None
    except OSError as error:
        raise UsageError(
            f"{uri}: the annotation file cannot be read ({files.reason(error)}); check"
            " --annotations"
        ) from error
    for name in take:
        if name not in met:
            raise DataError(
                f"{uri}: not a COCO file: it has no list named {name!r}; detection data needs"
                " images, annotations and categories"
            )
    if not reading.image_ids and not reading.listed:
        raise DataError(f"{uri}: its list of images is empty; there is nothing to prepare")
    return reading.finish(uri, digest)


@dataclass
class Reading:
    """What is known while the lists go by. References between them are followed at the end.

    An annotation without a fault is a row of `integers` (id, image_id, category_id, iscrowd) and of
    `numbers` (x, y, width, height, area).
    """

    keep: Callable[[str], bool]
    categories: list[Any] = field(default_factory=list)
    image_ids: list[Any] = field(default_factory=list)
    images: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    elsewhere: set[Any] = field(default_factory=set)
    listed: int = 0
    unusable: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    integers: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("d"))
    faulty: list[tuple[Any, str]] = field(default_factory=list)
    annotation_ids: array[int] = field(default_factory=lambda: array("q"))
    odd_ids: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)

    def take_image(self, record: Any) -> None:
        if not isinstance(record, dict):
            self.listed += 1
            self.findings.reject("image", "?", "the record is not an object", record)
            return
        self.make_whole(record, "id")
        if "id" in record:
            self.image_ids.append(key(record["id"]))
        name, id_ = record.get("file_name"), record.get("id")
        fault = "its id is not an integer from 0 on" if not is_id(id_) else fault_of_name(name)
        plain = name if fault else inside_folder(name)
        if isinstance(plain, str) and not self.keep(plain):
            self.elsewhere.add(key(id_))
            return
        self.listed += 1
        if fault:
            self.unusable.append((record, fault))
        else:
            height, width = record.get("height"), record.get("width")
            sizes = (
                (height, width) if is_id(height) and is_id(width) and height and width else (0, 0)
            )
            self.images[id_] = (plain, *sizes)

    def take_annotation(self, record: Any) -> None:
        if not isinstance(record, dict):
            self.faulty.append((record, "the record is not an object"))
            return
        self.make_whole(record, "id", "image_id", "category_id")
        if "id" in record:
            (self.annotation_ids.append if is_id(record["id"]) else self.odd_ids.append)(
                key(record["id"])
            )
        box, crowd = finite_numbers(record.get("bbox")), record.get("iscrowd")
        if not is_id(record.get("image_id")):
            fault = no_integer(record, "image_id")
        elif not is_id(record.get("category_id")):
            fault = no_integer(record, "category_id")
        elif box is None or len(box) != 4:
            fault = (
                "its bbox is missing"
                if record.get("bbox") is None
                else "its bbox is not four finite numbers"
            )
        elif crowd is not None and (not isinstance(crowd, (int, float)) or crowd not in (0, 1)):
            fault = "its iscrowd is neither 0 nor 1"
        else:
            area = finite_numbers([record.get("area")])
            id_ = record.get("id")
            self.integers.extend(
                (
                    id_ if is_id(id_) else NO_ID,
                    record["image_id"],
                    record["category_id"],
                    NO_CROWD if crowd is None else int(crowd),
                )
            )
            self.numbers.extend((*box, np.nan if area is None or area[0] < 0 else area[0]))
            return
        record.pop("segmentation", None)
        self.faulty.append((record, fault))

    def make_whole(self, record: dict[str, Any], *names: str) -> None:
        """1.0 as 1, which it is in what a table of floats was saved to."""
        for name in names:
            value = record.get(name)
            if isinstance(value, float) and value.is_integer():
                record[name] = int(value)
                self.findings.repairs[WHOLE_NUMBERS] += 1

    def finish(self, uri: str, digest: str) -> Source:
        categories = read_categories(self.categories, uri)
        check_unique(self.image_ids, "image", uri)
        check_unique([*repeated(self.annotation_ids), *self.odd_ids], "annotation", uri)
        integers_N4, numbers_N5 = (
            np.array(self.integers, np.int64).reshape(-1, 4),
            np.array(self.numbers, np.float64).reshape(-1, 5),
        )
        self.integers, self.numbers = array("q"), array("d")
        ids = np.array(list(self.images), np.int64)
        owners_N = places(integers_N4[:, 1], ids)
        labels_N = places(
            integers_N4[:, 2], np.array([category.id for category in categories], np.int64)
        )
        lost = self.follow_references(
            integers_N4, numbers_N5, owners_N, labels_N, {category.id for category in categories}
        )
        good_N = (owners_N >= 0) & (labels_N >= 0)
        integers_N4, numbers_N5 = integers_N4[good_N], numbers_N5[good_N]
        self.count_repairs(integers_N4, numbers_N5)
        boxes_N4 = numbers_N5[:, :4].copy()
        boxes_N4[:, 2:] += boxes_N4[:, :2]
        names, heights, widths = (
            zip(*self.images.values(), strict=True) if self.images else ((), (), ())
        )
        images = make_images(
            ids=ids,
            names=names,
            heights=heights,
            widths=widths,
            owners=owners_N[good_N],
            annotations={
                "ids_N": integers_N4[:, 0],
                "labels_N": labels_N[good_N],
                "boxes_N4": boxes_N4,
                "crowd_N": integers_N4[:, 3] == 1,
                "area_N": numbers_N5[:, 4],
            },
        )
        quarantined, repairs = tuple(self.findings.quarantined), dict(+self.findings.repairs)
        annotated = int(good_N.sum()) + lost + sum(one.what == "annotation" for one in quarantined)
        largest = max((id_ for id_ in self.image_ids if is_id(id_)), default=0)
        return Source(
            categories, images, quarantined, repairs, self.listed, annotated, lost, largest, digest
        )

    def follow_references(
        self,
        integers_N4: Any,
        numbers_N5: Any,
        owners_N: Any,
        labels_N: Any,
        category_ids: set[int],
    ) -> int:
        """Reject what cannot be used or refers to nothing. Returns how many annotations went with
        images whose records cannot be used: they are in the entry of their image and need none of
        their own.
        """
        known = set(self.image_ids)
        with_image: dict[Any, list[dict[str, Any]]] = {}
        rejected: list[tuple[object, str, object]] = []
        for record, fault in self.faulty:
            if not isinstance(record, dict):
                rejected.append(("?", fault, record))
                continue
            image, image_id, category_id = (
                key(record.get("image_id")),
                record.get("image_id"),
                record.get("category_id"),
            )
            if image in self.elsewhere:
                continue
            if image in known and not is_id(image_id):
                # An image whose id is no integer was left out, with all that refers to it.
                with_image.setdefault(image, []).append(record)
                continue
            if is_id(image_id) and image not in known:
                fault = UNKNOWN_IMAGE
            elif is_id(image_id) and is_id(category_id) and category_id not in category_ids:
                fault = UNKNOWN_CATEGORY
            rejected.append((record.get("id", "?"), fault, record))
        for place in np.flatnonzero((owners_N < 0) | (labels_N < 0)).tolist():
            id_, image, category, crowd = integers_N4[place].tolist()
            if image in self.elsewhere:
                continue
            *bbox, area = numbers_N5[place].tolist()
            record = {
                "id": None if id_ == NO_ID else id_,
                "image_id": image,
                "category_id": category,
                "bbox": bbox,
            }
            record |= {
                "area": None if area != area else area,
                "iscrowd": None if crowd == NO_CROWD else crowd,
            }
            if image in known and labels_N[place] >= 0:
                with_image.setdefault(image, []).append(record)
            else:
                rejected.append(
                    (
                        "?" if id_ == NO_ID else id_,
                        UNKNOWN_IMAGE if image not in known else UNKNOWN_CATEGORY,
                        record,
                    )
                )
        for record, fault in self.unusable:
            name = record.get("file_name")
            where = name if isinstance(name, str) and name else record.get("id", "?")
            self.findings.reject(
                "image",
                where,
                fault,
                record | {"annotations": with_image.get(key(record.get("id")), [])},
            )
        for where, fault, record in rejected:
            self.findings.reject("annotation", where, fault, record)
        return sum(map(len, with_image.values()))

    def count_repairs(self, integers_N4: Any, numbers_N5: Any) -> None:
        repairs = self.findings.repairs
        repairs["areas missing or not a number, filled with width x height"] += int(
            np.isnan(numbers_N5[:, 4]).sum()
        )
        repairs["iscrowd missing, filled with 0"] += int((integers_N4[:, 3] == NO_CROWD).sum())
        repairs["image sizes missing in the annotations, taken from the pixels"] += sum(
            not height for _, height, _ in self.images.values()
        )


def no_integer(record: dict[str, Any], name: str) -> str:
    return f"its {name} is {'missing' if record.get(name) is None else 'not an integer from 0 on'}"


def read_categories(records: list[Any], uri: str) -> tuple[Category, ...]:
    ids = []
    for record in records:
        if (
            not isinstance(record, dict)
            or not is_id(record.get("id"))
            or not is_text(record.get("name"))
        ):
            raise DataError(
                f"{uri}: category {json.dumps(record, default=str)[:200]} must have an integer id"
                " and a name"
            )
        ids.append(record["id"])
    if not ids:
        raise DataError(
            f"{uri}: its list of categories is empty; a detector needs at least one class"
        )
    check_unique(ids, "category", uri)
    return tuple(
        Category(label, record["id"], record["name"])
        for label, record in enumerate(sorted(records, key=lambda r: r["id"]))
    )


def check_unique(ids: list[Any], what: str, uri: str) -> None:
    """Two records of one id make every later lookup ambiguous: COCO's own evaluation then reports a
    wrong AP without a word.
    """
    twice = [id_ for id_, times in Counter(ids).items() if times > 1]
    if twice:
        raise DataError(
            f"{uri}: {what} id {some(twice)} is used more than once; ids must be unique: merge or"
            " renumber these records"
        )


def repeated(ids: array[int]) -> list[int]:
    """The ids that are used more than once, each of them twice."""
    ordered = np.sort(np.array(ids, np.int64))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).repeat(2).tolist()


def places(values_N: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """int64 (N,): where each value is in `ids`, which are unique and in any order; -1 where it is
    not.
    """
    if not len(ids):
        return np.full(len(values_N), -1)
    order = np.argsort(ids)
    found_N = order[np.searchsorted(ids, values_N, sorter=order).clip(max=len(ids) - 1)]
    return np.where(ids[found_N] == values_N, found_N, -1)


def finite_numbers(values: Any) -> list[float] | None:
    """`values` as floats, or None when it is not a list of finite numbers (bool and text are none)."""
    if not isinstance(values, list) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    ):
        return None
    # NaN and infinity fail the comparison too; beyond 1e9 x + width loses the pixels, and no
    # picture is that large.
    return [float(value) for value in values] if all(abs(value) < 1e9 for value in values) else None


def key(value: Any) -> Any:
    """`value` so that it can be looked up: what JSON cannot hash, and True, which Python takes for
    1, become text.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -MAX_ID <= value <= MAX_ID else f"not an id: {value}"
    return value if isinstance(value, str) else f"not an id: {json.dumps(value, default=str)}"
