"""The pictures of the summary: chosen in one pass over the rows, of which few are held."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.reports.pictures import SamplePicture, sample_of
from cluster.storage import parquet_pictures
from detector.image import MAX_PIXELS, decode_image

SPREAD, EXTREME = 12, 6
"""Pictures from all over the list; those with the most detections, and those without one."""
SIDE = 400
"""px of the longer side on the page."""
MOST_BYTES = 64 << 10
"""Of a picture: 24 of them take at most 2 MB of the page."""
MOST_BOXES = 100
Row = Mapping[str, Any]


@dataclass(frozen=True)
class SampleGroup:
    title: str
    pictures: Sequence[SamplePicture]


@dataclass(frozen=True)
class Pictures:
    groups: Sequence[SampleGroup]
    lost: Sequence[str]
    """Those that cannot be read any more, as "<uri>: <reason>"."""


class SampleRows:
    """Chooses rows of predictions.parquet that show what was found. The same rows give the same
    choice.
    """

    def __init__(self, images: int):
        """`images` is the number of rows that will be seen."""
        self._targets = [(2 * i + 1) * images // (2 * SPREAD) for i in range(SPREAD)]
        self._position = -1
        self._spread: dict[int, Row] = {}
        self._most: list[tuple[int, int, Row]] = []
        """A heap of (detections, minus the position, row); with those that are in `_spread` too."""
        self._empty: list[tuple[int, Row]] = []
        self._empty_seen = 0
        self._random = random.Random(0)

    def see(self, rows: Sequence[Row]) -> None:
        """The next rows, in order."""
        for row in rows:
            self._position += 1
            if row["status"] == "ok":
                self._see(row)

    def _see(self, row: Row) -> None:
        position, targets = self._position, self._targets
        if targets and position >= targets[0]:
            self._targets = [target for target in targets if target > position]
            self._spread[position] = row
        if row["labels"]:
            entry = (len(row["labels"]), -position, row)
            if len(self._most) < SPREAD + EXTREME:
                heapq.heappush(self._most, entry)
            elif entry[:2] > self._most[0][:2]:
                heapq.heapreplace(self._most, entry)
            return
        # Any of the images without a detection has the same chance (reservoir sampling).
        self._empty_seen += 1
        if len(self._empty) < SPREAD + EXTREME:
            self._empty.append((position, row))
        elif (place := self._random.randrange(self._empty_seen)) < SPREAD + EXTREME:
            self._empty[place] = (position, row)

    def chosen(self) -> list[tuple[str, list[Row]]]:
        """(title, rows), no row twice; a title without a row is left out."""
        most = [row for _, place, row in sorted(self._most)[::-1] if -place not in self._spread]
        empty = [
            row
            for position, row in sorted(self._empty, key=lambda each: each[0])
            if position not in self._spread
        ]
        groups = [
            ("From all over the list", list(self._spread.values())),
            ("With the most detections", most[:EXTREME]),
            ("Without a detection", empty[:EXTREME]),
        ]
        return [(title, rows) for title, rows in groups if rows]

    def pictures(self, class_names: Sequence[str]) -> Pictures:
        """The chosen pictures, which are read again."""
        groups, lost = list[SampleGroup](), list[str]()
        for title, rows in self.chosen():
            shown = list[SamplePicture]()
            for row in rows:
                try:
                    shown.append(_picture(row, class_names))
                except Exception as error:  # a picture is not worth the results
                    lost.append(f"{row['uri']}: {type(error).__name__}: {error}")
            if shown:
                groups.append(SampleGroup(title, shown))
        return Pictures(groups, lost)


def _picture(row: Row, class_names: Sequence[str]) -> SamplePicture:
    pixels = decode_image(
        parquet_pictures.read_picture(row["uri"]),
        # What was scored with a higher --max_pixels is shown too.
        max_pixels=max(MAX_PIXELS, row["height"] * row["width"]),
    )
    detected, notes = len(row["labels"]), list[str]()
    if detected > MOST_BOXES:
        notes = [f"the boxes with the {MOST_BOXES} best scores"]
    return sample_of(
        pixels,
        row["uri"].rpartition("/")[2],
        # Best score first.
        [(box, label, False) for box, label in zip(row["boxes"], row["labels"], strict=True)],
        class_names,
        most_boxes=MOST_BOXES,
        notes=notes,
        side=SIDE,
        most_bytes=MOST_BYTES,
    )
