"""AP of parts of a set: the images of one source, of one size, or with one value of any column of
the shards.
"""

from __future__ import annotations

import itertools
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from cluster.errors import UsageError
from cluster.reports.evaluation_report import Slice
from cluster.shards.index import ShardSet
from cluster.shards.read import read_columns, read_footer
from cluster.storage.uris import join
from detector.coco_matching import Matches, of_images
from detector.judgement import SEED
from detector.resampling import Interval, intervals, resamples_for

SIZE = "size"
"""Not a column: the longer and the shorter side of an image, px."""
ALWAYS = ("source", SIZE)
MOST_VALUES = 12
"""Values of a column that are slices of their own; numbers with more are cut into quarters."""
NAMES = ("AP", "AP50")


def check_columns(shard_set: ShardSet, columns: Sequence[str]) -> None:
    """`UsageError` for a column that the shards lack or that has no single value."""
    known = [SIZE, *_columns(shard_set)]
    for column in columns:
        if column not in known:
            raise UsageError(
                f"--slices {column}: is no column of {shard_set.uri} with one value for an image;"
                f" give some of {', '.join(known)}"
            )


def _columns(shard_set: ShardSet) -> list[str]:
    """The columns of the first shard with one text or number for an image."""
    shard = shard_set.shards[0]
    start = shard.footer_start
    uri = join(shard_set.uri, shard.name)
    footer = read_footer(uri, start, shard.bytes - start, shard.footer_sha256)
    return [
        field.name
        for field in footer.schema.to_arrow_schema()
        if not field.type.num_fields and not pa.types.is_binary(field.type)
        if not pa.types.is_fixed_size_binary(field.type)
    ]


def slices_of(
    matches: Matches, shard_set: ShardSet, columns: Sequence[str] = ()
) -> Iterator[Slice]:
    """The slices by `ALWAYS` and by these columns, each with its interval. A column of which all
    images have the same value has none.
    """
    for column in dict.fromkeys([*ALWAYS, *columns]):
        for value, chosen_I in _parts_of(shard_set, column, matches.image_ids):
            part = of_images(matches, chosen_I)
            scores: dict[str, Interval | None] = dict.fromkeys(NAMES)
            if len(part.image_ids) > 1:
                found = intervals(part, seed=SEED, names=NAMES, resamples=resamples_for(part))
                scores = found.summary
            objects = sum(len(of.image_G) for of in part.classes)
            yield Slice(column, value, len(part.image_ids), objects, scores)


def single_values(shard_set: ShardSet, columns: Sequence[str]) -> list[str]:
    """What to say of the columns of which all images have the same value."""
    if not columns:
        return []
    image_ids = np.sort(read_columns(shard_set, ["image_id"])["image_id"].to_numpy())
    return [
        f"--slices {column}: every image has the same value, {value}, so no part is scored apart"
        for column in columns
        if (value := _single_value(shard_set, column, image_ids)) is not None
    ]


def _single_value(shard_set: ShardSet, column: str, image_ids: np.ndarray) -> str | None:
    parts = list(_parts_of(shard_set, column, image_ids, least=1))
    return parts[0][0] if len(parts) == 1 else None


def _parts_of(
    shard_set: ShardSet, column: str, image_ids: np.ndarray, *, least: int = 2
) -> Iterator[tuple[str, np.ndarray]]:
    """(value in words, its images: bool) by a column; nothing for less than `least` values."""
    if column == SIZE:
        height_I, width_I = (
            _column(shard_set, name, image_ids).astype(np.int64) for name in ("height", "width")
        )
        return _sizes(height_I, width_I, least)
    value_I = _column(shard_set, column, image_ids)
    if column == "file_name":
        value_I = np.array([posixpath.dirname(name) or "." for name in value_I], object)
    if column == "source":
        named = dict(enumerate(shard_set.source_names))
        value_I = np.array([named.get(value, str(value)) for value in value_I], object)
    return _parts(value_I, least)


def _column(shard_set: ShardSet, column: str, image_ids: np.ndarray) -> np.ndarray:
    """The value of each image, in the order of the ids."""
    table = read_columns(shard_set, [*dict.fromkeys(["image_id", column])])
    order = np.argsort(table["image_id"].to_numpy())
    assert np.array_equal(table["image_id"].to_numpy()[order], image_ids)
    return np.array(table[column].to_pylist(), object)[order]


def _parts(value_I: np.ndarray, least: int) -> Iterator[tuple[str, np.ndarray]]:
    counts = Counter(value_I.tolist())
    if len(counts) < least:
        return
    number = all(isinstance(value, int | float) for value in counts)
    if len(counts) <= MOST_VALUES or not number:
        values = sorted(counts) if number else [v for v, _ in counts.most_common(MOST_VALUES)]
        for value in values:
            yield f"{value:.4g}" if isinstance(value, float) else str(value), value_I == value
        return
    value_I = value_I.astype(np.float64)
    edges = np.unique(np.quantile(value_I, [0, 0.25, 0.5, 0.75, 1]))
    for low, high in itertools.pairwise(edges):
        chosen_I = (value_I >= low) & ((value_I < high) | (high == edges[-1]))
        yield f"{low:.3g} to {high:.3g}", chosen_I


def _sizes(
    height_I: np.ndarray, width_I: np.ndarray, least: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Each size, upright and lying together, or quarters by the number of px. The border of two
    quarters is the size of an image, which belongs to the lower one.
    """
    area_I = height_I * width_I
    shapes = [
        f"{max(sides)}x{min(sides)}"
        for sides in zip(height_I.tolist(), width_I.tolist(), strict=True)
    ]
    shape_I = np.array(shapes, object)
    smallest_first = np.argsort(area_I, kind="stable").tolist()
    distinct = list(dict.fromkeys(shapes[i] for i in smallest_first))
    if len(distinct) < least:
        return
    if len(distinct) <= MOST_VALUES:
        for shape in distinct:
            yield shape, shape_I == shape
        return
    borders = np.unique(np.quantile(area_I, [0.25, 0.5, 0.75], method="inverted_cdf"))
    quarter_I = np.searchsorted(borders, area_I)
    names = [shapes[int(np.flatnonzero(area_I == border)[0])] for border in borders]
    for quarter in np.unique(quarter_I).tolist():
        words = [
            *([f"above {names[quarter - 1]}"] if quarter else []),
            *([f"up to {names[quarter]}"] if quarter < len(names) else []),
        ]
        yield ", ".join(words), quarter_I == quarter
