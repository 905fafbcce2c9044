from __future__ import annotations

import numpy as np
import pytest

from detector.canvas_fit import fit_canvas


@pytest.mark.parametrize(
    ("sizes", "canvases"),
    [
        # (height, width) of the pictures. 800 x 4/3 = 1066.7, and the next multiple of 32 is 1088.
        ([(480, 640)], ((800, 1088),)),
        ([(640, 480)], ((1088, 800),)),
        ([(3000, 4000)], ((800, 1088),)),
        ([(512, 512)], ((800, 800),)),
        # Twice as large, not more.
        ([(240, 320)], ((480, 640),)),
        # 800 x 16/9 is above 1344; so wide, a picture is 756 px high, and 768 is the next multiple.
        ([(1080, 1920)], ((768, 1344),)),
        # 1344 / 4 = 336.
        ([(1000, 4000)], ((352, 1344),)),
        # Nothing to fit.
        ([], ((800, 1344),)),
        # The smallest canvas, upright.
        ([(30, 20)], ((96, 64),)),
        # 3 in 10 are upright; 1 in 25 is few.
        ([(480, 640)] * 7 + [(640, 480)] * 3, ((800, 1088), (1088, 800))),
        ([(480, 640)] * 24 + [(640, 480)], ((800, 1088),)),
        # One large picture in 25 does not decide.
        ([(240, 320)] * 24 + [(1080, 1920)], ((480, 640),)),
        # Square and wide ones: the shape is that of nearly all, 800 x 1.5.
        ([(600, 600)] * 5 + [(600, 900)] * 5, ((800, 1216),)),
    ],
)
def test_the_canvas_has_the_shape_of_the_pictures(
    sizes: list[tuple[int, int]], canvases: tuple[tuple[int, int], ...]
) -> None:
    heights, widths = np.array(sizes).reshape(-1, 2).T
    assert fit_canvas(heights, widths).canvases == canvases
