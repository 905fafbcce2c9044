"""One or several annotated sources, of COCO, VOC or YOLO format, whole or one split of them -> one
list of images with one list of classes.

Classes of several sources are one where their names are the same: those of the first source in its
order, then the new ones of the others. A class keeps the id of the first source that has it, or
gets the next free one where that id is taken. Image ids of the first source stay; those of every
other are moved up by one more than the largest id before it, so that no two are equal.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from cluster.errors import DataError, UsageError
from cluster.formats import coco, voc, yolo
from cluster.formats.annotations import MAX_ID, Images, Source
from cluster.formats.names import composed
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.preflight import check_readable

FORMATS = ("coco", "voc", "yolo")
SPLITS = ("all", "train", "val")
PARTS = 1_000_000


class SourcePaths(NamedTuple):
    """Where a source is. `annotations` is a COCO JSON, a folder of VOC XML files or one of YOLO
    labels; file names are relative to `images`.
    """

    name: str
    format: str
    annotations: str
    images: str


@dataclass(frozen=True)
class United:
    """All sources as one. `about` says of each, in order, what the index keeps: name, format,
    digest, image_id_offset and category_ids (the ids of its own by class name, where they are
    others)."""

    source: Source
    about: tuple[dict[str, Any], ...]


def read_sources(
    places: Sequence[SourcePaths], *, split: str = "all", val_share: float = 0.1
) -> United:
    """Read every source. `UsageError` where the annotations are not there, `DataError` where they
    cannot be used.
    """

    def keep(name: str) -> bool:
        return split == "all" or in_val(name, val_share) == (split == "val")

    sources = [read_source(place, keep) for place in places]
    for place, source in zip(places, sources, strict=True):
        check_names(place, source)
        if not source.listed:
            raise DataError(
                f"{place.annotations}: none of its images falls into --split {split} with"
                f" --val_share {val_share:g}; change one of them"
            )
    return unite(places, sources)


def check_place(place: SourcePaths) -> None:
    """`UsageError` where annotations or images are not there, or are a file where a folder is
    needed and the other way round.
    """
    for flag, uri in (("annotations", place.annotations), ("images", place.images)):
        check_readable(uri)
        a_file, needs_file = (
            files.size(uri) is not None,
            (flag, place.format) == ("annotations", "coco"),
        )
        if needs_file and not a_file:
            raise UsageError(
                f"--annotations {uri}: is a folder, COCO annotations are a JSON file; name it, or"
                " say --format voc or yolo"
            )
        if a_file and not needs_file:
            what = (
                "the images are in a folder"
                if flag == "images"
                else f"annotations of format {place.format} are in a folder"
            )
            raise UsageError(f"--{flag} {uri}: is a file, {what}; name that")


def check_names(place: SourcePaths, source: Source) -> None:
    """AP by class, weights by class and the union of sources go by the names of classes."""
    names = Counter(category.name for category in source.categories)
    for twice, times in names.items():
        if times == 1:
            continue
        ids = ", ".join(
            str(category.id) for category in source.categories if category.name == twice
        )
        raise DataError(
            f"{place.annotations}: {times} categories are named {twice!r} (ids {ids}); classes go"
            " by name: rename or merge them"
        )


def read_source(place: SourcePaths, keep: Callable[[str], bool]) -> Source:
    if place.format == "coco":
        return coco.read_coco(place.annotations, keep)
    if place.format == "voc":
        return voc.read_voc(place.annotations, keep)
    if place.format == "yolo":
        return yolo.read_yolo(place.annotations, place.images, keep)
    raise UsageError(f"--format {place.format}: is not one of {', '.join(FORMATS)}")


def in_val(file_name: str, val_share: float) -> bool:
    """Whether an image belongs to the val split: by the sha256 of its name alone, so that it stays
    where it is when others come and go.
    """
    digest = hashlib.sha256(composed(file_name).encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") % PARTS < round(val_share * PARTS)


def unite(places: Sequence[SourcePaths], sources: Sequence[Source]) -> United:
    categories = unite_categories(sources) if len(sources) > 1 else sources[0].categories
    united = {category.name: category for category in categories}
    about, parts, offset = [], [], 0
    for number, (place, source) in enumerate(zip(places, sources, strict=True)):
        largest = offset + source.largest_id
        if largest > MAX_ID:
            raise DataError(
                f"{place.annotations}: image ids beyond 2^63 when united with the other sources;"
                " renumber its images"
            )
        other_ids = {
            one.name: one.id
            for one in source.categories
            if len(sources) > 1 and one.id != united[one.name].id
        }
        about.append(
            {
                "name": place.name,
                "format": place.format,
                "digest": source.digest,
                "image_id_offset": offset,
                "category_ids": other_ids,
            }
        )
        parts.append(source.images)
        if len(sources) > 1:
            labels = np.array(
                [united[category.name].label for category in source.categories], np.int32
            )
            parts[-1] = replace(
                source.images,
                ids_I=source.images.ids_I + offset,
                sources_I=np.full(len(source.images), number, np.int32),
                labels_N=labels[source.images.labels_N],
            )
        offset = largest + 1
    repairs = {
        what: sum(source.repairs.get(what, 0) for source in sources)
        for source in sources
        for what in source.repairs
    }
    source = Source(
        categories=categories,
        images=join_images(parts),
        quarantined=tuple(record for source in sources for record in source.quarantined),
        repairs=repairs,
        listed=sum(source.listed for source in sources),
        annotated=sum(source.annotated for source in sources),
        lost=sum(source.lost for source in sources),
        largest_id=offset - 1,
        digest=(
            sources[0].digest
            if len(sources) == 1
            else hashlib.sha256("".join(source.digest for source in sources).encode()).hexdigest()
        ),
    )
    return United(source, tuple(about))


def unite_categories(sources: Sequence[Source]) -> tuple[Category, ...]:
    united: dict[str, Category] = {}
    taken: set[int] = set()
    for source in sources:
        for category in source.categories:
            if category.name not in united:
                id_ = category.id if category.id not in taken else max(taken) + 1
                united[category.name] = Category(len(united), id_, category.name)
                taken.add(id_)
    return tuple(united.values())


def join_images(parts: Sequence[Images]) -> Images:
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in vars(parts[0])
        if name not in ("names", "first_I1")
    }
    counts_I = np.concatenate([np.diff(part.first_I1) for part in parts])
    return Images(
        names=[name for part in parts for name in part.names],
        first_I1=np.concatenate([[0], np.cumsum(counts_I)]),
        **columns,
    )
