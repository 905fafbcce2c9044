"""References between the lists of a COCO JSON: an annotation names its image and its category.

An annotation whose image was rejected goes with its image, into the image's entry of the
quarantine; one that names nothing that is listed gets an entry of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cluster.formats.annotations import NO_ID, Findings
from cluster.formats.coco_records import is_id, lookup_key

UNKNOWN_IMAGE = "its image_id is not in the list of images"
UNKNOWN_CATEGORY = "its category_id is not in the list of categories"
NO_CROWD = 2
"""In the column of iscrowd: the record has none."""


class AnnotationRows(NamedTuple):
    """Annotations as read: integers are id, image_id, category_id, iscrowd; numbers are x, y,
    width, height, area (NaN: not given).
    """

    integers_N4: np.ndarray
    numbers_N5: np.ndarray

    @property
    def ids_N(self) -> np.ndarray:
        return self.integers_N4[:, 0]

    @property
    def image_ids_N(self) -> np.ndarray:
        return self.integers_N4[:, 1]

    @property
    def category_ids_N(self) -> np.ndarray:
        return self.integers_N4[:, 2]

    @property
    def crowd_N(self) -> np.ndarray:
        return self.integers_N4[:, 3]

    @property
    def area_N(self) -> np.ndarray:
        return self.numbers_N5[:, 4]

    def select(self, chosen_N: np.ndarray) -> AnnotationRows:
        return AnnotationRows(self.integers_N4[chosen_N], self.numbers_N5[chosen_N])

    def to_record(self, row: int) -> dict[str, Any]:
        """The fields as they stood in the file."""
        id_, image_id, category_id, crowd = self.integers_N4[row].tolist()
        *bbox, area = self.numbers_N5[row].tolist()
        return {
            "id": None if id_ == NO_ID else id_,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": bbox,
            "area": None if area != area else area,
            "iscrowd": None if crowd == NO_CROWD else crowd,
        }


class Rejected(NamedTuple):
    """An annotation that cannot be stored. `with_image` is the look-up key of the rejected image it
    goes with; None: it gets an entry of its own.
    """

    where: object
    why: str
    record: Any
    with_image: int | str | None = None


@dataclass(frozen=True)
class References:
    """The ids that a file lists. `other_split` holds the ids of images of other splits: their
    annotations are passed over.
    """

    image_ids: set[int | str]
    category_ids: set[int]
    other_split: set[int | str]

    def reject_unresolved(
        self,
        findings: Findings,
        rows: AnnotationRows,
        *,
        owners_N: np.ndarray,
        labels_N: np.ndarray,
        bad_images: Sequence[tuple[dict[str, Any], str]],
        bad_annotations: Sequence[tuple[Any, str]],
    ) -> int:
        """Reject `bad_images`, `bad_annotations` and the rows whose image or category is not there
        (position -1). Returns how many annotations went with a rejected image.
        """
        rejected = [
            *self._reject_records(bad_annotations),
            *self._reject_rows(rows, owners_N, labels_N),
        ]
        of_image: dict[int | str, list[Any]] = {}
        for annotation in rejected:
            if annotation.with_image is not None:
                of_image.setdefault(annotation.with_image, []).append(annotation.record)
        for record, fault in bad_images:
            name = record.get("file_name")
            where = name if isinstance(name, str) and name else record.get("id", "?")
            lost = of_image.get(lookup_key(record.get("id")), [])
            findings.reject("image", where, fault, record | {"annotations": lost})
        for annotation in rejected:
            if annotation.with_image is None:
                findings.reject("annotation", annotation.where, annotation.why, annotation.record)
        return sum(map(len, of_image.values()))

    def _reject_records(self, bad_annotations: Sequence[tuple[Any, str]]) -> Iterator[Rejected]:
        for record, fault in bad_annotations:
            if not isinstance(record, dict):
                yield Rejected("?", fault, record)
                continue
            image_id, category_id = record.get("image_id"), record.get("category_id")
            image = lookup_key(image_id)
            if image in self.other_split:
                continue
            where = record.get("id", "?")
            if image in self.image_ids and not is_id(image_id):
                # An image whose id is no integer was rejected, with all that refers to it.
                yield Rejected(where, fault, record, with_image=image)
            elif is_id(image_id) and image not in self.image_ids:
                yield Rejected(where, UNKNOWN_IMAGE, record)
            elif is_id(image_id) and is_id(category_id) and category_id not in self.category_ids:
                yield Rejected(where, UNKNOWN_CATEGORY, record)
            else:
                yield Rejected(where, fault, record)

    def _reject_rows(
        self, rows: AnnotationRows, owners_N: np.ndarray, labels_N: np.ndarray
    ) -> Iterator[Rejected]:
        for row in np.flatnonzero((owners_N < 0) | (labels_N < 0)).tolist():
            record = rows.to_record(row)
            image = record["image_id"]
            if image in self.other_split:
                continue
            where = "?" if record["id"] is None else record["id"]
            if image not in self.image_ids:
                yield Rejected(where, UNKNOWN_IMAGE, record)
            elif labels_N[row] >= 0:
                yield Rejected(where, "", record, with_image=image)
            else:
                yield Rejected(where, UNKNOWN_CATEGORY, record)


def positions_of(values_N: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """int64 (N,): the position of each value in `ids`, which are unique and in any order; -1 where
    it is not there.
    """
    if not len(ids):
        return np.full(len(values_N), -1)
    order = np.argsort(ids)
    nearest_N = order[np.searchsorted(ids, values_N, sorter=order).clip(max=len(ids) - 1)]
    return np.where(ids[nearest_N] == values_N, nearest_N, -1)
