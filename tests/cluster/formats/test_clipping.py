from __future__ import annotations

import json

from cluster.formats.annotations import Annotation, ImageRecord
from cluster.formats.clipping import clip_annotations


def annotation(id_: int, *box: float, area: float | None = None) -> Annotation:
    return Annotation(id_, 0, box, False, area)


def test_clipping() -> None:
    kept, dropped, cut = clip_annotations(
        [
            annotation(1, 10, 10, 30, 50, area=7.0),
            annotation(2, -5, 90, 20, 130),
            annotation(3, 199.5, 0, 260, 50),
            annotation(4, 10, 10, 10, 50),
            annotation(5, 50, 10, 30, 50),
            annotation(6, 300, 10, 330, 50),
            annotation(7, 199, 99, 200, 100),
        ],
        height=100,
        width=200,
        image=ImageRecord(8, "a.jpg", 100, 200, ()),
        category_ids=(18,),
    )
    # 1 is untouched. 2 becomes 0..20 x 90..100: area 20 * 10 = 200. 7 is exactly 1 px a side: kept.
    # 3 is half a pixel wide inside, 4 has no width, 5 a negative one, 6 lies outside: dropped.
    assert [(one.id, one.box, one.area) for one in kept] == [
        (1, (10, 10, 30, 50), 7.0),
        (2, (0, 90, 20, 100), 200.0),
        (7, (199, 99, 200, 100), 1.0),
    ]
    assert [record.where for record in dropped] == [
        "3 of a.jpg",
        "4 of a.jpg",
        "5 of a.jpg",
        "6 of a.jpg",
    ]
    assert json.loads(dropped[0].raw) == {
        **{
            "id": 3,
            "image_id": 8,
            "category_id": 18,
            "bbox": [199.5, 0, 60.5, 50],
            "area": None,
            "iscrowd": 0,
        },
        **{"file_name": "a.jpg", "height": 100, "width": 200},
    }
    assert cut == 1
