"""The canvases that suit a set of pictures, for a training that names none."""

from __future__ import annotations

import numpy as np

from detector.image_config import CANVAS_STEP, DEFAULT_CANVAS, SMALLEST_SIDE, CanvasConfig

MOST_ENLARGED = 2.0
"""A picture that is enlarged more has no more to show. The paper enlarges COCO's pictures of
640x480 px 1.67 times.
"""
NEARLY_ALL = 0.9
"""Share of the pictures that decides; the others are shrunk to fit."""
FEW = 0.05
"""Share of upright pictures, or of others, for which there is no canvas of their own."""


def fit_canvas(
    heights_I: np.ndarray, widths_I: np.ndarray, *, short_side: int = DEFAULT_CANVAS[0]
) -> CanvasConfig:
    """Canvases for pictures of these sizes, px: with the shape of nearly all of them, as large as
    the paper's (800 px by at most 1344) but not more than twice as large as the pictures. Where
    some pictures are upright and some are not, there are two canvases. That of the paper where
    there is no picture. Another `short_side` than the paper's 800 px makes all smaller in
    proportion.
    """
    if not len(heights_I):
        return CanvasConfig()
    limit_short = short_side
    limit_long = DEFAULT_CANVAS[1] * short_side / DEFAULT_CANVAS[0]
    short_I, long_I = np.minimum(heights_I, widths_I), np.maximum(heights_I, widths_I)
    ratio_I = long_I / short_I
    short = min(float(limit_short), MOST_ENLARGED * float(np.quantile(short_I, NEARLY_ALL)))
    long = min(float(limit_long), short * float(np.quantile(ratio_I, NEARLY_ALL)))
    # Of long pictures the short side becomes shorter than the canvas could be.
    short = min(short, limit_long / float(np.quantile(ratio_I, 1 - NEARLY_ALL)))
    across, down = _rounded_up(long), _rounded_up(short)
    if across == SMALLEST_SIDE:
        across += CANVAS_STEP
    upright = float((heights_I > widths_I).mean())
    if FEW < upright < 1 - FEW and across != down:
        return CanvasConfig(shapes=((down, across), (across, down)))
    if upright > 0.5:
        across, down = down, across
    return CanvasConfig(height=down, width=across)


def _rounded_up(side: float) -> int:
    return max(SMALLEST_SIDE, int(-(-side // CANVAS_STEP)) * CANVAS_STEP)
