"""The one form that annotations of every format are read into: image records stored as columns,
and rejected records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from cluster.formats.names import escape_surrogates
from cluster.shards.format import Category, Federated
from cluster.shards.quarantine import Quarantined

Box = tuple[float, float, float, float]
Keep = Callable[[str], bool]
"""Whether the image of a file name belongs to the split that is read."""

MAX_ID = 2**63 - 1
SWAPPED = "boxes whose corners are given in another order"
"""A repair that several readers make."""
NO_ID = -1
"""In the column of annotation ids: the annotation has none."""


def keep_all(file_name: str) -> bool:
    return True


class Annotation(NamedTuple):
    """`box` is XYXY px as annotated, not yet clipped: only the pixels tell the true size of the
    picture. `id` and `area` (px^2) are None where the source gives none.
    """

    id: int | None
    label: int
    box: Box
    crowd: bool
    area: float | None


class ImageRecord(NamedTuple):
    """An image with its annotations. `file_name` is relative to the images folder of source number
    `source` and stays inside it; a reader may give a path of another machine, as `plain_name` does.
    Height and width are px as annotated, None where the source gives none. Where `normalised`,
    boxes are fractions of the width and height of the upright picture instead of px.
    """

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    annotations: tuple[Annotation, ...]
    source: int = 0
    normalised: bool = False
    federated: Federated | None = None


@dataclass(frozen=True, eq=False)
class Images(Sequence[ImageRecord]):
    """Images with their annotations as columns; indexing makes one `ImageRecord`. 860k annotations
    take 46 MB like this and 290 MB as tuples.

    Suffix I: an image; N: an annotation. The annotations of image i are first_I1[i] to
    first_I1[i + 1]. A height or width of 0, an annotation id of -1 and an area of NaN mean "not
    given".

    Where `elsewhere_I`, the name was a path of another machine. It is here without its root: what
    the file is called in the folder of the images is not known yet.
    """

    ids_I: np.ndarray
    names: list[str]
    heights_I: np.ndarray
    widths_I: np.ndarray
    sources_I: np.ndarray
    elsewhere_I: np.ndarray
    normalised_I: np.ndarray
    first_I1: np.ndarray
    ids_N: np.ndarray
    labels_N: np.ndarray
    boxes_N4: np.ndarray
    crowd_N: np.ndarray
    area_N: np.ndarray
    federated: Mapping[int, Federated] = field(default_factory=dict)
    """By image id; images that were searched for every class have no entry."""

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        height, width = int(self.heights_I[i]), int(self.widths_I[i])
        image_id = int(self.ids_I[i])
        return ImageRecord(
            image_id=image_id,
            file_name=self.names[i],
            height=height or None,
            width=width or None,
            annotations=self._annotations(i),
            source=int(self.sources_I[i]),
            normalised=bool(self.normalised_I[i]),
            federated=self.federated.get(image_id),
        )

    def _annotations(self, i: int) -> tuple[Annotation, ...]:
        rows = slice(int(self.first_I1[i]), int(self.first_I1[i + 1]))
        columns = (self.ids_N, self.labels_N, self.boxes_N4, self.crowd_N, self.area_N)
        return tuple(
            Annotation(
                None if id_ == NO_ID else id_,
                label,
                (x1, y1, x2, y2),
                crowd,
                None if area != area else area,
            )
            for id_, label, (x1, y1, x2, y2), crowd, area in zip(
                *(column[rows].tolist() for column in columns), strict=True
            )
        )


@dataclass(frozen=True)
class AnnotationColumns:
    """The columns of `Images` that hold annotations, in any order."""

    ids_N: npt.ArrayLike
    labels_N: npt.ArrayLike
    boxes_N4: npt.ArrayLike
    crowd_N: npt.ArrayLike
    area_N: npt.ArrayLike


def make_images(
    *,
    ids: npt.ArrayLike,
    names: list[str],
    heights: npt.ArrayLike,
    widths: npt.ArrayLike,
    owners: npt.ArrayLike,
    annotations: AnnotationColumns,
    normalised: bool = False,
    federated: Mapping[int, Federated] | None = None,
) -> Images:
    """Columns in any order -> `Images` by ascending id. `owners` gives the position in `names` of
    each annotation's image; the annotations of one image keep their order. `names` are those of
    `plain_name`: one that begins with `/` is a path of another machine.
    """
    ids_I = np.asarray(ids, np.int64)
    order_I = np.argsort(ids_I, kind="stable")
    rank_I = np.empty_like(order_I)
    rank_I[order_I] = np.arange(len(order_I))
    owners_N = np.asarray(owners, np.int64)
    owners_N = rank_I[owners_N] if len(owners_N) else np.zeros(0, np.int64)
    order_N = np.argsort(owners_N, kind="stable")
    counts_I = np.bincount(owners_N, minlength=len(ids_I))
    return Images(
        ids_I=ids_I[order_I],
        names=[names[i].lstrip("/") for i in order_I.tolist()],
        heights_I=np.asarray(heights, np.int64)[order_I],
        widths_I=np.asarray(widths, np.int64)[order_I],
        sources_I=np.zeros(len(ids_I), np.int32),
        elsewhere_I=np.array([names[i].startswith("/") for i in order_I.tolist()], np.bool_),
        normalised_I=np.full(len(ids_I), normalised),
        first_I1=np.concatenate([[0], np.cumsum(counts_I)]).astype(np.int64),
        ids_N=np.asarray(annotations.ids_N, np.int64)[order_N],
        labels_N=np.asarray(annotations.labels_N, np.int32)[order_N],
        boxes_N4=np.asarray(annotations.boxes_N4, np.float64).reshape(-1, 4)[order_N],
        crowd_N=np.asarray(annotations.crowd_N, np.bool_)[order_N],
        area_N=np.asarray(annotations.area_N, np.float64)[order_N],
        federated=federated or {},
    )


def images_of_records(records: Sequence[ImageRecord], *, normalised: bool = False) -> Images:
    """`Images` of records in any order."""
    owned = [
        (i, annotation) for i, record in enumerate(records) for annotation in record.annotations
    ]
    annotations = [annotation for _, annotation in owned]
    return make_images(
        ids=[record.image_id for record in records],
        names=[record.file_name for record in records],
        heights=[record.height or 0 for record in records],
        widths=[record.width or 0 for record in records],
        owners=[i for i, _ in owned],
        annotations=AnnotationColumns(
            ids_N=[NO_ID if one.id is None else one.id for one in annotations],
            labels_N=[one.label for one in annotations],
            boxes_N4=np.array([one.box for one in annotations], np.float64).reshape(-1, 4),
            crowd_N=[one.crowd for one in annotations],
            area_N=[np.nan if one.area is None else one.area for one in annotations],
        ),
        normalised=normalised,
        federated={one.image_id: one.federated for one in records if one.federated is not None},
    )


@dataclass(frozen=True)
class Source:
    """One split of one source. `images` are in the order of their ids; `repairs` counts the fields
    that were filled in or corrected; `digest` is a sha256 of all that was read: the annotations and
    the files beside them, such as classes.txt.

    `listed` and `annotated` count the images and annotations before any was rejected; `lost` counts
    the annotations of rejected images. `largest_id` is the largest image id over all splits.
    `passed_over` counts files that lie between the data and are none, by reason. `doubts` are
    sentences about what may not be meant.
    """

    categories: tuple[Category, ...]
    images: Images
    quarantined: tuple[Quarantined, ...]
    repairs: dict[str, int]
    listed: int
    annotated: int
    lost: int
    largest_id: int
    digest: str
    passed_over: Mapping[str, int] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A reader whose counts do not add up would lose images without a word, and ids that are
        # too small would collide with those of the next source.
        rejected = Counter(item.what for item in self.quarantined)
        assert self.listed == len(self.images) + rejected["image"]
        stored = len(self.images.labels_N)
        assert self.annotated == stored + rejected["annotation"] + self.lost
        assert self.largest_id >= max(self.images.ids_I, default=-1)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """By label."""
        return tuple(category.id for category in self.categories)


def most_frequent(faults: Sequence[str]) -> str:
    """The faults of all records, the three most frequent ones, in brackets of a sentence."""
    counts = Counter(faults).most_common(3)
    return "; ".join(f"{count} x {fault}" for fault, count in counts) or "there are none"


@dataclass
class Findings:
    """What a reader rejects and repairs on its way through a source."""

    quarantined: list[Quarantined] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)

    def reject(
        self, what: str, where: object, why: str, record: object, *, detail: str = ""
    ) -> None:
        """Add an entry of the quarantine; its fields are those of `Quarantined`."""
        if isinstance(record, dict):
            # Polygons are most of a COCO file and say nothing about what was wrong.
            record = {name: value for name, value in record.items() if name != "segmentation"}
        raw = json.dumps(record, ensure_ascii=False, default=str)
        self.quarantined.append(
            Quarantined(
                what,
                escape_surrogates(str(where)),
                why,
                escape_surrogates(raw),
                detail=escape_surrogates(detail),
            )
        )

    def rejected(self, what: str) -> int:
        """How many entries are about an "image" or an "annotation"."""
        return sum(entry.what == what for entry in self.quarantined)
