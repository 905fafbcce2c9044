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
from detector.judgement import RESAMPLES, SEED
from detector.resampling import Interval, intervals

SIZE = "size"
"""Not a column: height x width, in millions of px."""
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
        value_I = _values(shard_set, column, matches.image_ids)
        for value, chosen_I in _parts(value_I):
            part = of_images(matches, chosen_I)
            scores: dict[str, Interval | None] = dict.fromkeys(NAMES)
            if len(part.image_ids) > 1:
                found = intervals(part, seed=SEED, names=NAMES, resamples=RESAMPLES)
                scores = found.summary
            objects = sum(len(of.image_G) for of in part.classes)
            yield Slice(column, value, len(part.image_ids), objects, scores)


def _values(shard_set: ShardSet, column: str, image_ids: np.ndarray) -> np.ndarray:
    """The value of each image, in the order of the ids."""
    names = ["height", "width"] if column == SIZE else [column]
    table = read_columns(shard_set, ["image_id", *(name for name in names if name != "image_id")])
    order = np.argsort(table["image_id"].to_numpy())
    assert np.array_equal(table["image_id"].to_numpy()[order], image_ids)
    if column == SIZE:
        return (table["height"].to_numpy() * table["width"].to_numpy() / 1e6)[order]
    value_I = np.array(table[column].to_pylist(), object)[order]
    if column == "file_name":
        return np.array([posixpath.dirname(name) or "." for name in value_I], object)
    if column == "source":
        sources = shard_set.source_names
        named = {n: name for n, name in enumerate(sources)}
        return np.array([named.get(value, str(value)) for value in value_I], object)
    return value_I


def _parts(value_I: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    counts = Counter(value_I.tolist())
    if len(counts) < 2:
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
