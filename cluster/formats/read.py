"""One or several annotated sources, in any of the formats of `READERS`, whole or one split of them
-> one list of images with one list of classes.

Classes of several sources that have the same name are one class: those of the first source in its
order, then the new ones of the others. A class keeps the id of the first source that has it, or
gets the next free id where that one is taken. Image ids of the first source stay; those of every
other source are moved up by one more than the largest id before it, so that no two are equal.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from cluster.errors import DataError, UsageError
from cluster.formats.annotations import MAX_ID, Images, Keep, Source, keep_all
from cluster.formats.coco import read_coco
from cluster.formats.crowdhuman import read_crowdhuman
from cluster.formats.csv_boxes import read_csv
from cluster.formats.cvat import read_cvat
from cluster.formats.kinds import UNPACK, Format, kind_of
from cluster.formats.labelstudio import read_labelstudio
from cluster.formats.names import composed
from cluster.formats.openimages import read_openimages
from cluster.formats.parquet_boxes import read_parquet
from cluster.formats.voc import read_voc
from cluster.formats.yolo import read_yolo
from cluster.shards.format import Category, Federated
from cluster.shards.index import IndexedSource
from cluster.storage import files, uris
from cluster.storage.preflight import check_readable

SPLIT_BUCKETS = 1_000_000


class ReadFormat(Protocol):
    def __call__(self, annotations: str, images: str, keep: Keep) -> Source:
        """Read the images whose file name `keep` accepts. `annotations` and `images` are URIs."""
        ...


class Reader(NamedTuple):
    """An annotation format. `annotations` says what its annotations are, for `--help` and errors;
    `is_folder` whether that is a folder, None where it may be a file too; `has_pictures` whether
    pictures may be in it, so that no folder of images is needed.
    """

    read: ReadFormat
    annotations: str
    is_folder: bool | None
    has_pictures: bool = False


_PARQUET = Reader(read_parquet, "Parquet files of Hugging Face's datasets", None, has_pictures=True)
READERS: dict[Format, Reader] = {
    "coco": Reader(read_coco, "a COCO JSON file (also of LVIS or Objects365)", is_folder=False),
    "voc": Reader(read_voc, "a folder of VOC XML files", is_folder=True),
    "yolo": Reader(read_yolo, "a folder of YOLO label files", is_folder=True),
    "crowdhuman": Reader(read_crowdhuman, "an .odgt file of CrowdHuman", is_folder=False),
    "cvat": Reader(read_cvat, "an XML file of CVAT", is_folder=False),
    "labelstudio": Reader(read_labelstudio, "a JSON file of Label Studio", is_folder=False),
    "openimages": Reader(read_openimages, "a CSV file of OpenImages' boxes", is_folder=False),
    "csv": Reader(read_csv, "a CSV file with a box in each line", is_folder=False),
    "parquet": _PARQUET,
    "parquet_xywh": _PARQUET._replace(read=partial(read_parquet, order="xywh")),
    "parquet_xyxy": _PARQUET._replace(read=partial(read_parquet, order="xyxy")),
    "parquet_cxcywh": _PARQUET._replace(read=partial(read_parquet, order="cxcywh")),
}
"""The one list of annotation formats: a new one is a file with a reader, a line here and its name
in `kinds.Format`.
"""


class SourcePaths(NamedTuple):
    """Where a source is: the annotations as its `Reader` wants them, and the folder that their file
    names are relative to. `images` is None where the pictures are in the annotations.
    """

    name: str
    format: Format
    annotations: str
    images: str | None

    def absolute(self) -> SourcePaths:
        images = None if self.images is None else uris.absolute(self.images)
        return self._replace(annotations=uris.absolute(self.annotations), images=images)

    def folder(self) -> str:
        """The folder that the names of the pictures are relative to."""
        if self.images is not None:
            return self.images
        is_file = files.size(self.annotations) is not None
        return posixpath.dirname(self.annotations) if is_file else self.annotations


@dataclass(frozen=True)
class MergedSources:
    """All sources as one, and the index entry of each, in order. How many images of a source are
    stored, only their pixels will tell: its `images` is 0.
    """

    source: Source
    entries: tuple[IndexedSource, ...]


def read_sources(
    paths: Sequence[SourcePaths], *, split: str = "all", val_share: float = 0.1
) -> MergedSources:
    """Read every source. `UsageError` where the annotations are not there, `DataError` where they
    cannot be used.
    """

    def keep(file_name: str) -> bool:
        return split == "all" or in_val(file_name, val_share) == (split == "val")

    sources = [read_source(path, keep) for path in paths]
    for path, source in zip(paths, sources, strict=True):
        _check_class_names(path, source)
        if not source.listed:
            raise DataError(
                f"{path.annotations}: none of its images falls into --split {split} with"
                f" --val_share {val_share:g}; change one of them"
            )
    return _merge(paths, sources)


def read_source(path: SourcePaths, keep: Keep = keep_all) -> Source:
    """One source. Errors: see `read_sources`."""
    return _reader(path).read(path.annotations, path.folder(), keep)


def _reader(path: SourcePaths) -> Reader:
    if path.format not in READERS:
        raise UsageError(f"--format {path.format}: is not one of {', '.join(READERS)}")
    return READERS[path.format]


def check_paths(path: SourcePaths) -> None:
    """`UsageError` where annotations or images are not there, are a file where a folder is needed,
    a folder where a file is needed, or a file of another format.
    """
    reader = _reader(path)
    check_readable(path.annotations)
    if path.images is not None:
        check_readable(path.images)
    is_folder = files.size(path.annotations) is None
    kind = None if is_folder else kind_of(path.annotations)
    # Formats that read the same files begin alike: parquet, parquet_xyxy.
    if kind is not None and kind.format != path.format.partition("_")[0]:
        raise UsageError(
            f"--annotations {path.annotations}: is {kind.what}, but annotations of format"
            f" {path.format} are {reader.annotations}; {kind.remedy}"
        )
    if is_folder and reader.is_folder is False:
        others = " or ".join(
            name
            for name, other in READERS.items()
            # The formats that differ in the order of the numbers alone are named in the documents.
            if other.is_folder is not False and "_" not in name
        )
        raise UsageError(
            f"--annotations {path.annotations}: is a folder, but annotations of format"
            f" {path.format} are {reader.annotations}; name it, or say --format {others}"
        )
    if not is_folder and reader.is_folder:
        raise UsageError(
            f"--annotations {path.annotations}: is a file, but annotations of format {path.format}"
            f" are {reader.annotations}; name that"
        )
    if path.images is None:
        return
    if files.size(path.images) is not None:
        kind = kind_of(path.images)
        remedy = UNPACK if kind is not None and kind.remedy == UNPACK else "name that"
        raise UsageError(
            f"--images {path.images}: is a file, but the images are in a folder; {remedy}"
        )


def _check_class_names(path: SourcePaths, source: Source) -> None:
    """AP by class, weights by class and the merging of sources identify classes by name."""
    counts = Counter(category.name for category in source.categories)
    for name, count in counts.items():
        if count > 1:
            ids = ", ".join(str(one.id) for one in source.categories if one.name == name)
            raise DataError(
                f"{path.annotations}: {count} categories are named {name!r} (ids {ids}); classes go"
                " by name: rename or merge them"
            )


def in_val(file_name: str, val_share: float) -> bool:
    """Whether an image belongs to the val split: by the sha256 of its name alone, so that it stays
    in its split when other images come and go.
    """
    digest = hashlib.sha256(composed(file_name).encode("utf-8", "backslashreplace")).digest()
    bucket = int.from_bytes(digest[:8], "big") % SPLIT_BUCKETS
    return bucket < round(val_share * SPLIT_BUCKETS)


def _merge(paths: Sequence[SourcePaths], sources: Sequence[Source]) -> MergedSources:
    """One source stays as it is, ids included."""
    alone = len(sources) == 1
    categories = sources[0].categories if alone else _merge_categories(sources)
    merged = {category.name: category for category in categories}
    entries: list[IndexedSource] = []
    parts: list[Images] = []
    offset = 0
    for number, (path, source) in enumerate(zip(paths, sources, strict=True)):
        if offset + source.largest_id > MAX_ID:
            raise DataError(
                f"{path.annotations}: image ids beyond 2^63 when merged with the other sources;"
                " renumber its images"
            )
        own_ids = {one.name: one.id for one in source.categories if one.id != merged[one.name].id}
        entries.append(
            IndexedSource(
                name=path.name,
                format=path.format,
                digest=source.digest,
                image_id_offset=offset,
                category_ids={} if alone else own_ids,
            )
        )
        labels_K = np.array([merged[one.name].label for one in source.categories], np.int32)
        images = source.images
        parts.append(
            images
            if alone
            else replace(
                images,
                ids_I=images.ids_I + offset,
                sources_I=np.full(len(images), number, np.int32),
                labels_N=labels_K[images.labels_N],
                federated=_relabel(images.federated, labels_K.tolist(), offset),
            )
        )
        offset += source.largest_id + 1
    digests = "".join(source.digest for source in sources)
    digest = digests if alone else hashlib.sha256(digests.encode()).hexdigest()
    source = Source(
        categories=categories,
        images=_concatenate(parts),
        quarantined=tuple(entry for source in sources for entry in source.quarantined),
        repairs=_sum([source.repairs for source in sources]),
        passed_over=_sum([source.passed_over for source in sources]),
        doubts=tuple(doubt for source in sources for doubt in source.doubts),
        listed=sum(source.listed for source in sources),
        annotated=sum(source.annotated for source in sources),
        lost=sum(source.lost for source in sources),
        largest_id=offset - 1,
        digest=digest,
    )
    return MergedSources(source, tuple(entries))


def _relabel(
    federated: Mapping[int, Federated], labels: Sequence[int], offset: int
) -> dict[int, Federated]:
    """The same of image ids moved by `offset`, in the labels of the merged classes."""
    return {
        image_id + offset: Federated(*(tuple(labels[k] for k in classes) for classes in one))
        for image_id, one in federated.items()
    }


def _merge_categories(sources: Sequence[Source]) -> tuple[Category, ...]:
    merged: dict[str, Category] = {}
    taken: set[int] = set()
    for source in sources:
        for category in source.categories:
            if category.name not in merged:
                id_ = category.id if category.id not in taken else max(taken) + 1
                merged[category.name] = category._replace(label=len(merged), id=id_)
                taken.add(id_)
            elif merged[category.name].frequency is None:
                known = merged[category.name]
                merged[category.name] = known._replace(frequency=category.frequency)
    return tuple(merged.values())


def _sum(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _concatenate(parts: Sequence[Images]) -> Images:
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in vars(parts[0])
        if name not in ("names", "first_I1", "federated")
    }
    counts_I = np.concatenate([np.diff(part.first_I1) for part in parts])
    return Images(
        names=[name for part in parts for name in part.names],
        first_I1=np.concatenate([[0], np.cumsum(counts_I)]),
        federated={image_id: one for part in parts for image_id, one in part.federated.items()},
        **columns,
    )
