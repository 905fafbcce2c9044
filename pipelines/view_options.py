"""The options of a verb that detects in tiles and mirrored views."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from detector.choices import OVERLAP, ViewSettings
from detector.config import shown

TILE: Any = Field(
    default=None,
    ge=64,
    le=100_000,
    description=(
        "px of the side of square tiles in which images larger than one are detected, beside the"
        " whole image; for objects that are small in large images; unset: the whole image alone"
    ),
)
OVERLAP_OF_TILES: Any = Field(
    default=OVERLAP,
    ge=0,
    le=0.9,
    description=(
        "share of its side that a tile has in common with the next one, at least; objects up to"
        " this size are seen whole in a tile; only used with --tile"
    ),
)
FLIP: Any = Field(
    default=False,
    description="detect in the mirror image of each image or tile too; takes twice the time",
)


def view_settings(tile: int | None, overlap: float, flip: bool) -> ViewSettings:
    """`ValueError` for an overlap of no tiles."""
    if tile is None and overlap != OVERLAP:
        raise ValueError(
            f"overlap {shown(overlap)}: does nothing without --tile, whose tiles overlap; give"
            f" both, or leave it at {shown(OVERLAP)}"
        )
    return ViewSettings(tile, overlap, flip)
