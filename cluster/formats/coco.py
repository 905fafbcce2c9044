"""Read and validate COCO JSON. A bad record costs that record alone: it goes to the quarantine with
the reason.

Only a fault that makes the whole file ambiguous is an error: JSON that cannot be parsed, no images,
no categories, an id used twice.

The file is read record by record (`json_stream`) into columns (`annotations.Images`); its lists may
come in any order. A file of 118k images and 860k annotations with polygons (547 MB) takes 226 MB of
memory and 19 s of CPU time; `json.load` alone takes 3392 MB and 21 s of it, and the same checks on
its result took 3940 MB and 33 s (tests/benchmarks/prepare.py).
"""

from __future__ import annotations

import gzip
import zlib
from array import array
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np

from cluster.errors import DataError, UsageError
from cluster.formats import json_stream, lvis
from cluster.formats.annotations import (
    NO_ID,
    AnnotationColumns,
    Findings,
    Images,
    Keep,
    Source,
    keep_all,
    make_images,
)
from cluster.formats.coco_records import (
    AnnotationFields,
    check_unique,
    is_id,
    lookup_key,
    parse_annotation,
    read_categories,
    repeated_ids,
)
from cluster.formats.coco_references import NO_CROWD, AnnotationRows, References, positions_of
from cluster.formats.names import fault_of_name, name_in_url, plain_name
from cluster.formats.numbers import as_number, as_whole
from cluster.shards.format import Federated
from cluster.storage import files

WHOLE_NUMBERS = "whole numbers given with a point"
TEXT_NUMBERS = "numbers given as text, read as numbers"
FROM_URL = "file names taken from coco_url, as in LVIS"
TWICE = "classes without an object that have the name of another class, left out"
NO_AREA = "areas missing or not a number, filled with width x height"
NO_ISCROWD = "iscrowd missing, filled with 0"
NO_SIZE = "image sizes missing in the annotations, taken from the pixels"
NO_OBJECT = "the record is not an object"


def read_coco(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read the COCO JSON `annotations`; the folder `images` is not looked at. `UsageError` when the
    file is not there, `DataError` when the whole file cannot be used (see the top of this file).

    Labels count the categories by ascending id, so the same categories give the same labels in
    every split. Images whose file name `keep` turns down belong to another split: they and their
    annotations count as not listed.
    """
    lists = _CocoLists(keep)
    take = {
        "images": lists.take_image,
        "annotations": lists.take_annotation,
        "categories": lists.categories.append,
    }
    try:
        with files.open_input(annotations) as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if packed else nullcontext(file) as text:
                names, digest = json_stream.read_lists(cast(BinaryIO, text), annotations, take)
    except FileNotFoundError:
        raise UsageError(
            f"{annotations}: there is no such annotation file; check --annotations"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{annotations}: the packed file is damaged or cut off ({files.reason(error)}); write"
            " or download it again"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{annotations}: the annotation file cannot be read ({files.reason(error)}); check"
            " --annotations"
        ) from error
    for name in take:
        if name not in names:
            raise DataError(
                f"{annotations}: not a COCO file: it has no list named {name!r}; detection data"
                " needs images, annotations and categories"
            )
    if not lists.image_ids and not lists.listed:
        raise DataError(f"{annotations}: its list of images is empty; there is nothing to prepare")
    return lists.to_source(annotations, digest)


@dataclass
class _CocoLists:
    """The records of one file, taken one by one. References between records are followed at the
    end, because the lists come in any order.

    An annotation without a fault is a row of `integers` (id, image_id, category_id, iscrowd) and of
    `numbers` (x, y, width, height, area).
    """

    keep: Keep
    categories: list[Any] = field(default_factory=list)
    image_ids: list[int | str] = field(default_factory=list)
    images: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    other_split: set[int | str] = field(default_factory=set)
    listed: int = 0
    bad_images: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    integers: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("d"))
    bad_annotations: list[tuple[Any, str]] = field(default_factory=list)
    annotation_ids: array[int] = field(default_factory=lambda: array("q"))
    odd_annotation_ids: list[int | str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    searched: dict[int, lvis.SearchedFor] = field(default_factory=dict)

    def take_image(self, record: Any) -> None:
        if not isinstance(record, dict):
            self.listed += 1
            self.findings.reject("image", "?", NO_OBJECT, record)
            return
        self._make_whole(record, "id")
        if record.get("file_name") is None and isinstance(url := record.get("coco_url"), str):
            record["file_name"] = name_in_url(url)
            self.findings.repairs[FROM_URL] += 1
        id_, name = record.get("id"), record.get("file_name")
        if "id" in record:
            self.image_ids.append(lookup_key(id_))
        fault = fault_of_name(name) if is_id(id_) else "its id is not an integer from 0 on"
        file_name = name if fault else plain_name(str(name))
        if isinstance(file_name, str) and not self.keep(file_name):
            self.other_split.add(lookup_key(id_))
            return
        self.listed += 1
        if fault is not None or file_name is None or not is_id(id_):
            self.bad_images.append((record, str(fault)))
            return
        self._make_whole(record, "height", "width")
        height, width = record.get("height"), record.get("width")
        if not (is_id(height) and is_id(width) and height and width):
            height = width = 0
        self.images[id_] = (file_name, height, width)
        if (searched := lvis.searched_for(record)) is not None:
            self.searched[id_] = searched

    def take_annotation(self, record: Any) -> None:
        if not isinstance(record, dict):
            self.bad_annotations.append((record, NO_OBJECT))
            return
        self._make_whole(record, "id", "image_id", "category_id", "iscrowd")
        self._make_numbers(record)
        if record.get("id", 0) is None:
            # Nothing refers to an annotation, so it needs no id.
            del record["id"]
        id_ = record.get("id")
        if is_id(id_):
            self.annotation_ids.append(id_)
        elif "id" in record:
            self.odd_annotation_ids.append(lookup_key(id_))
        fields = parse_annotation(record)
        if not isinstance(fields, AnnotationFields):
            record.pop("segmentation", None)
            self.bad_annotations.append((record, fields))
            return
        crowd = NO_CROWD if fields.crowd is None else fields.crowd
        own_id = id_ if is_id(id_) else NO_ID
        self.integers.extend((own_id, fields.image_id, fields.category_id, crowd))
        self.numbers.extend((*fields.bbox, fields.area))

    def _make_whole(self, record: dict[str, Any], *names: str) -> None:
        """1.0 and "1" become 1: a table of floats saves its ids like that."""
        for name in names:
            value = record.get(name)
            if isinstance(value, (float, str)) and (whole := as_whole(value)) is not None:
                record[name] = whole
                repair = WHOLE_NUMBERS if isinstance(value, float) else TEXT_NUMBERS
                self.findings.repairs[repair] += 1

    def _make_numbers(self, record: dict[str, Any]) -> None:
        """Texts in the box and the area become numbers."""
        bbox, area = record.get("bbox"), record.get("area")
        if isinstance(bbox, list) and str in map(type, bbox):
            numbers = [as_number(value) for value in bbox]
            if None not in numbers:
                record["bbox"] = numbers
                self.findings.repairs[TEXT_NUMBERS] += 1
        if isinstance(area, str) and (number := as_number(area)) is not None:
            record["area"] = number
            self.findings.repairs[TEXT_NUMBERS] += 1

    def to_source(self, uri: str, digest: str) -> Source:
        """Follow the references. `uri` is for errors."""
        for record in self.categories:
            if isinstance(record, dict):
                self._make_whole(record, "id")
        categories = read_categories(self._without_unused_doubles(), uri)
        self.findings.repairs[lvis.UNKNOWN_FREQUENCY] += lvis.count_unknown_frequencies(
            self.categories
        )
        check_unique(self.image_ids, "image", uri)
        doubled = [*repeated_ids(self.annotation_ids), *self.odd_annotation_ids]
        check_unique(doubled, "annotation", uri)
        rows = AnnotationRows(
            np.array(self.integers, np.int64).reshape(-1, 4),
            np.array(self.numbers, np.float64).reshape(-1, 5),
        )
        self.integers, self.numbers = array("q"), array("d")
        image_ids_I = np.array(list(self.images), np.int64)
        category_ids_K = np.array([category.id for category in categories], np.int64)
        owners_N = positions_of(rows.image_ids_N, image_ids_I)
        labels_N = positions_of(rows.category_ids_N, category_ids_K)
        references = References(set(self.image_ids), set(category_ids_K.tolist()), self.other_split)
        lost = references.reject_unresolved(
            self.findings,
            rows,
            owners_N=owners_N,
            labels_N=labels_N,
            bad_images=self.bad_images,
            bad_annotations=self.bad_annotations,
        )
        good_N = (owners_N >= 0) & (labels_N >= 0)
        rows = rows.select(good_N)
        self._count_repairs(rows)
        federated = lvis.to_labels(self.searched, category_ids_K.tolist(), self.findings.repairs)
        return Source(
            categories=categories,
            images=self._make_images(
                image_ids_I, rows, owners_N[good_N], labels_N[good_N], federated
            ),
            quarantined=tuple(self.findings.quarantined),
            repairs=dict(+self.findings.repairs),
            listed=self.listed,
            annotated=int(good_N.sum()) + lost + self.findings.rejected("annotation"),
            lost=lost,
            largest_id=max((id_ for id_ in self.image_ids if is_id(id_)), default=0),
            digest=digest,
        )

    def _without_unused_doubles(self) -> list[Any]:
        """The categories without those that have the name of another one and no annotation:
        Roboflow writes the name of the project as a parent class.
        """
        used = set(self.integers[2::4])
        named = [one for one in self.categories if isinstance(one, dict) and "name" in one]
        names = Counter(str(one["name"]) for one in named if lookup_key(one.get("id")) in used)
        unused = [
            one
            for one in named
            if lookup_key(one.get("id")) not in used and names[str(one["name"])] == 1
        ]
        self.findings.repairs[TWICE] += len(unused)
        return [one for one in self.categories if one not in unused]

    def _make_images(
        self,
        image_ids_I: np.ndarray,
        rows: AnnotationRows,
        owners_N: np.ndarray,
        labels_N: np.ndarray,
        federated: dict[int, Federated],
    ) -> Images:
        boxes_N4 = rows.numbers_N5[:, :4].copy()
        boxes_N4[:, 2:] += boxes_N4[:, :2]
        return make_images(
            ids=image_ids_I,
            names=[name for name, _, _ in self.images.values()],
            heights=[height for _, height, _ in self.images.values()],
            widths=[width for _, _, width in self.images.values()],
            owners=owners_N,
            annotations=AnnotationColumns(
                ids_N=rows.ids_N,
                labels_N=labels_N,
                boxes_N4=boxes_N4,
                crowd_N=rows.crowd_N == 1,
                area_N=rows.area_N,
            ),
            federated=federated,
        )

    def _count_repairs(self, rows: AnnotationRows) -> None:
        repairs = self.findings.repairs
        repairs[NO_AREA] += int(np.isnan(rows.area_N).sum())
        repairs[NO_ISCROWD] += int((rows.crowd_N == NO_CROWD).sum())
        repairs[NO_SIZE] += sum(not height for _, height, _ in self.images.values())
