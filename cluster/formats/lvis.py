"""What LVIS adds to a COCO JSON (Gupta et al., LVIS, CVPR 2019).

    category   "frequency": "r" | "c" | "f"
    image      "neg_category_ids": [3, 8]              searched for, not there
               "not_exhaustive_category_ids": [7]      there, perhaps more often than annotated

An image was not searched for every one of the 1,203 classes: that a class has no annotation says
nothing, unless `neg_category_ids` lists it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.formats.numbers import as_whole
from cluster.shards.format import FREQUENCIES, Federated

FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")
UNKNOWN = f"entries of {' or '.join(FIELDS)} that are no listed category, passed over"

UNKNOWN_FREQUENCY = f"frequencies of classes that are none of {', '.join(FREQUENCIES)}, passed over"

SearchedFor = tuple[list[int | None], list[int | None]]
"""The category ids of the two `FIELDS`; None for what is no id."""


def frequency_of(category: Mapping[str, Any]) -> str | None:
    """How many training images have this class: r, c or f; None where that is not given."""
    frequency = category.get("frequency")
    return frequency if isinstance(frequency, str) and frequency in FREQUENCIES else None


def count_unknown_frequencies(categories: Iterable[object]) -> int:
    """How many categories have a frequency that `frequency_of` does not know."""
    given = (
        one for one in categories if isinstance(one, dict) and one.get("frequency") is not None
    )
    return sum(frequency_of(one) is None for one in given)


def searched_for(image: Mapping[str, Any]) -> SearchedFor | None:
    """What the image was searched for; None where neither field is given: for every class."""
    if all(image.get(name) is None for name in FIELDS):
        return None
    absent, incomplete = (_ids(image.get(name)) for name in FIELDS)
    return absent, incomplete


def _ids(value: object) -> list[int | None]:
    if value is None:
        return []
    return [as_whole(one) for one in value] if isinstance(value, list) else [None]


def to_labels(
    searched: Mapping[int, SearchedFor], category_ids: Sequence[int], repairs: Counter[str]
) -> dict[int, Federated]:
    """By image id, in labels: the places in `category_ids`. What is no category is counted."""
    label_of = {id_: label for label, id_ in enumerate(category_ids)}
    federated = {}
    for image_id, both in searched.items():
        labels = [[label_of[id_] for id_ in ids if id_ in label_of] for ids in both]
        repairs[UNKNOWN] += sum(map(len, both)) - sum(map(len, labels))
        absent, incomplete = (tuple(sorted(set(one))) for one in labels)
        federated[image_id] = Federated(absent, incomplete)
    return federated
