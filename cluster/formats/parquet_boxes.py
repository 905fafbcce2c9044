"""Read object detection sets in Parquet files, as Hugging Face's `datasets` stores them: a row for
each picture, in the column `image`, with its `objects` (see `parquet_rows`). A bad row or object
costs itself alone.

Pictures inside the files are addressed as `train.parquet#17`, row 17 from 0 on
(`cluster.storage.parquet_pictures`); pictures of which there is a path alone are files below the
images folder. Rows may have an `image_id`, a `width` and a `height`. Where `image_id` is a whole
number in every file, it is the id; otherwise the rows are counted from 1, the files in the order of
their names.

The names of the classes are those in the schema. Without them a category that is text is its own
name, and one that is a number is a line of the classes.txt beside the files or, without that, the
number itself.

Nothing in the files says whether `bbox` is x, y, width, height or two corners: `box_order` decides
by all boxes, unless the format names the order, as `parquet_xyxy` does.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import DataError, UsageError
from cluster.formats import box_order
from cluster.formats.annotation_files import list_annotations
from cluster.formats.annotations import Findings, Keep, Source, keep_all, most_frequent
from cluster.formats.box_order import Decision, Order
from cluster.formats.class_names import CLASSES, read_class_list
from cluster.formats.columns import Columns
from cluster.formats.names import fault_of_name, plain_name
from cluster.formats.numbers import as_whole
from cluster.formats.parquet_rows import (
    class_names,
    columns_to_read,
    count_objects,
    objects_of,
    read_object,
)
from cluster.shards.format import Category
from cluster.storage import files, parquet_pictures
from cluster.storage.uris import is_below, join
from detector.image import ImageError, opened

NO_OBJECTS = "rows whose objects are null, taken as images without objects"
NO_PICTURE = "its image is null"
BAD_ID = "its image_id is not an integer from 0 on"
SAME_ID = "an earlier row has its image_id"
NOT_A_CLASS = "its category is not one of the classes"
BY_NUMBER = f"classes named by their number, because neither the schema nor a {CLASSES} names them"
SPLITS = {"train", "test", "validation", "val"}
LOOKED_AT = 64
"""Pictures whose size is looked up where the files give none, to tell what `bbox` means."""
_BATCH = 1000


def read_parquet(
    annotations: str, images: str, keep: Keep = keep_all, order: Order | None = None
) -> Source:
    """Read a Parquet file, or all below a folder; `images` is the folder that paths of pictures are
    relative to. `order` is that of `bbox`. `DataError` where there are no files or rows, the
    columns are not there, files do not belong together, or no class occurs.

    Images whose file name `keep` turns down belong to another split: they and their objects count
    as not listed, but their classes count, and so do their boxes where the order is decided.
    """
    uris = _list_files(annotations)
    listed = join(posixpath.dirname(uris[0]), CLASSES)
    rows = _Rows(keep, images, read_class_list(listed) if files.exists(listed) else None)
    digest = hashlib.sha256()
    for uri in uris:
        with parquet_pictures.open_parquet(uri) as file:
            rows.start_file(uri, file)
            for batch in file.iter_batches(
                _BATCH, columns=columns_to_read(file, uri), use_threads=False
            ):
                digest.update(repr(batch_rows := batch.to_pylist()).encode("utf-8", "replace"))
                for row in batch_rows:
                    rows.take(row)
        # The pictures inside are known by the size of the file, as those in a folder are by theirs.
        name = uri.removeprefix(annotations)
        digest.update(repr((name, files.size(uri), rows.names)).encode())
    if not rows.number:
        raise DataError(f"{annotations}: has no row; there is nothing to prepare")
    if not rows.labels:
        faults = [entry.why for entry in rows.findings.quarantined]
        raise DataError(
            f"{annotations}: no usable object in any of its {rows.number} rows"
            f" ({most_frequent(faults)}); a detector needs at least one class"
        )
    return rows.to_source(digest.hexdigest(), order)


def _list_files(annotations: str) -> list[str]:
    if files.size(annotations) is not None:
        if not annotations.lower().endswith(parquet_pictures.SUFFIX):
            raise UsageError(
                f"--annotations {annotations}: the name of a Parquet file must end in"
                f" {parquet_pictures.SUFFIX}, by which its pictures are found; rename it"
            )
        return [annotations]
    found = list_annotations(annotations, parquet_pictures.SUFFIX)
    if not found:
        raise DataError(
            f"{annotations}: no {parquet_pictures.SUFFIX} file below it; check --annotations"
        )
    words = {word for uri in found for word in re.split(r"[-_./]", uri[len(annotations) :])}
    if len(splits := words & SPLITS) > 1:
        raise DataError(
            f"{annotations}: holds the files of several splits ({', '.join(sorted(splits))}); put"
            " those of each split into a folder of their own and name that"
        )
    return found


@dataclass
class _Rows:
    """The rows of all files, taken one by one. `listed_names` are the classes of classes.txt."""

    keep: Keep
    folder: str
    listed_names: list[str] | None
    columns: Columns = field(default_factory=Columns)
    kept: list[bool] = field(default_factory=list)
    """Whether each image of `columns` belongs to the split."""
    findings: Findings = field(default_factory=Findings)
    names: list[str] | None = None
    """Of the classes, where they are known."""
    labels: dict[int | str, int] = field(default_factory=dict)
    ids: set[int] = field(default_factory=set)
    lost: int = 0
    number: int = 0
    """Of rows so far."""
    has_ids: bool = False
    places: Iterator[tuple[str, bool]] = field(default_factory=lambda: iter(()))
    """For each row of a file, the name of a picture inside it and whether there is one."""

    def start_file(self, uri: str, file: pq.ParquetFile) -> None:
        schema = file.schema_arrow
        names = class_names(schema.metadata, uri) or self.listed_names
        has_ids = "image_id" in schema.names and pa.types.is_integer(schema.field("image_id").type)
        if self.number and (names, has_ids) != (self.names, self.has_ids):
            raise DataError(
                f"{uri}: its schema names other classes than the files before it, or has another"
                " kind of image_id; prepare it as a source of its own"
            )
        self.names, self.has_ids = names, has_ids
        there = parquet_pictures.rows_with_picture(file).tolist()
        if any(there) and not is_below(uri, self.folder):
            raise UsageError(
                f"--images {self.folder}: is not needed, because {uri} holds its pictures; leave it"
                " out"
            )
        relative = uri[len(self.folder) + 1 :]
        self.places = (
            (parquet_pictures.name_of_row(relative, row), embedded_here)
            for row, embedded_here in enumerate(there)
        )

    def take(self, row: dict[str, Any]) -> None:
        self.number += 1
        (place, is_inside), image = next(self.places), row.get(parquet_pictures.IMAGE)
        path = image.get("path") if isinstance(image, dict) else image
        name, fault = place, None
        if not is_inside:
            fault = fault_of_name(path) if path else NO_PICTURE
            name = place if fault else plain_name(str(path)) or place
        image_id = as_whole(row.get("image_id")) if self.has_ids else self.number
        if image_id is None or not 0 <= image_id < 2**63:
            fault, image_id = fault or BAD_ID, 0
        elif image_id in self.ids:
            fault = fault or SAME_ID
        else:
            self.ids.add(image_id)
        kept = self.keep(name)
        objects = objects_of(row.get("objects"))
        fault = fault or (objects if isinstance(objects, str) else None)
        if isinstance(objects, str) or fault is not None:
            if kept:
                self.lost += count_objects(row.get("objects"))
                where = f"{place} ({path})" if path else place
                self.findings.reject("image", where, str(fault), row)
            return
        self.findings.repairs[NO_OBJECTS] += kept and row.get("objects") is None
        height, width = (as_whole(row.get(side)) or 0 for side in ("height", "width"))
        if not 0 < min(height, width) <= max(height, width) < 2**31:
            height = width = 0
        owner = self.columns.add_image(image_id, name, height, width)
        self.kept.append(kept)
        for number, record in enumerate(objects, start=1):
            self._take_object(owner, number, record)

    def _take_object(self, owner: int, number: int, record: object) -> None:
        read = read_object(record)
        if isinstance(read, str) or not self._is_class(read.category):
            if self.kept[owner]:
                where = f"object {number} of {self.columns.names[owner]}"
                fault = read if isinstance(read, str) else NOT_A_CLASS
                self.findings.reject("annotation", where, fault, record)
            return
        label = self.labels.setdefault(read.category, len(self.labels))
        area = np.nan if read.area is None else read.area
        self.columns.add_box(owner, label, read.bbox, number=number, crowd=read.crowd, area=area)

    def _is_class(self, category: int | str) -> bool:
        if self.names is None:
            return True
        return category in self.names if isinstance(category, str) else category < len(self.names)

    def to_source(self, digest: str, order: Order | None) -> Source:
        categories, labels_K = self._classes()
        boxes_N4, normalised = self._decided_boxes(order)
        if normalised:
            # Nobody says what an area is a share of.
            self.columns.areas = array("d", [np.nan] * len(boxes_N4))
        images = self.columns.to_images(boxes_N4, labels_K, normalised=normalised, kept_I=self.kept)
        return Source(
            categories=categories,
            images=images,
            quarantined=tuple(self.findings.quarantined),
            repairs=dict(+self.findings.repairs),
            listed=len(images) + self.findings.rejected("image"),
            annotated=len(images.labels_N) + self.lost + self.findings.rejected("annotation"),
            lost=self.lost,
            largest_id=max(self.ids, default=0),
            digest=digest,
        )

    def _classes(self) -> tuple[tuple[Category, ...], list[int]]:
        """The categories, and the label of each category that occurs, in the order of `labels`."""
        if self.names is not None:
            numbers = {name: number for number, name in enumerate(self.names)}
            labels_K = [one if isinstance(one, int) else numbers[one] for one in self.labels]
            return tuple(Category(n, n, name) for n, name in enumerate(self.names)), labels_K
        by_number = sorted(one for one in self.labels if isinstance(one, int))
        self.findings.repairs[BY_NUMBER] += len(by_number)
        by_name = sorted(one for one in self.labels if isinstance(one, str))
        names = list(dict.fromkeys([*map(str, by_number), *by_name]))
        ids = by_number if len(by_number) == len(names) else list(range(len(names)))
        labels_K = [names.index(str(one)) for one in self.labels]
        return tuple(map(Category, range(len(names)), ids, names)), labels_K

    def _decided_boxes(self, order: Order | None) -> tuple[np.ndarray, bool]:
        """All boxes as XYXY, and whether they are shares of the picture."""
        boxes_N4 = self.columns.boxes_N4()
        if order is not None:
            return box_order.to_xyxy(boxes_N4, order), box_order.are_shares(boxes_N4)
        owners_N = np.array(self.columns.owners, np.int64)
        sizes_I2 = self._sizes()
        decision = box_order.decide_order(boxes_N4, sizes_I2[owners_N])
        kept = int(np.array(self.kept, np.bool_)[owners_N].sum())
        self.findings.repairs[_said(decision)] += kept
        return box_order.to_xyxy(boxes_N4, decision.order), decision.normalised

    def _sizes(self) -> np.ndarray:
        """(width, height) in px of each image, as the rows give it; 0 where they do not. Where no
        row does, those of the first pictures, from their files.
        """
        columns = self.columns
        sizes_I2 = np.array([columns.widths, columns.heights], np.int64).T
        if not sizes_I2.any():
            uris = [join(self.folder, name.lstrip("/")) for name in columns.names[:LOOKED_AT]]
            for position, data in enumerate(parquet_pictures.read_all(uris)):
                with suppress(ImageError), opened(data or b"") as picture:
                    sizes_I2[position] = picture.size
        return sizes_I2


def _said(decision: Decision) -> str:
    """The order of the numbers, for the report."""
    order = f"boxes read as {box_order.ORDERS[decision.order]}"
    if decision.certain:
        return f"{order}, the one order that fits the pictures"
    others = [f"parquet_{name}" for name in box_order.ORDERS if name != decision.order]
    return f"{order}, though others fit too; to choose another, say --format {' or '.join(others)}"
