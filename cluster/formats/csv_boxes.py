"""Read a CSV file of boxes as TensorFlow's tutorials and Roboflow write it: a line for each box,
with the columns filename, class, xmin, ymin, xmax, ymax and perhaps width, height.

    filename,width,height,class,xmin,ymin,xmax,ymax
    a.jpg,640,480,cat,12,30,200,300
    empty.jpg,640,480,,,,,

Corners are px from the upper left corner of the picture, counted from 0, and half-open: a box over
the whole picture ends at its width and height. A line without a class and a box names an image
without objects. A classes.txt beside the file gives the order of the labels; without it the classes
are the names that occur, sorted. See `box_rows` for the rest.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from cluster.formats.annotations import Findings, Keep, Source, keep_all
from cluster.formats.box_rows import BoxRow, Classes, read_boxes, read_corners
from cluster.formats.class_names import CLASSES, read_class_list
from cluster.formats.numbers import as_whole
from cluster.storage import files
from cluster.storage.uris import join

CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("filename", "class", *CORNERS)


def read_csv(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read the file `annotations`; the folder `images` is not looked at. Errors: see
    `read_boxes`.
    """
    listed = join(posixpath.dirname(annotations), CLASSES)
    classes = None
    if files.exists(listed):
        classes = Classes({name: name for name in read_class_list(listed)}, CLASSES)
    return read_boxes(
        annotations, COLUMNS, _parse, keep, classes=classes, normalised=False, identity=None
    )


def _parse(fields: Mapping[str, str], findings: Findings) -> BoxRow:
    name, label = fields["filename"], fields["class"]
    height, width = (as_whole(fields.get(side)) or 0 for side in ("height", "width"))
    size = (height, width) if 0 < min(height, width) <= max(height, width) < 2**31 else (0, 0)
    if not label and not any(fields[side] for side in CORNERS):
        return BoxRow(name, "", None, size=size)
    box = read_corners(fields, CORNERS, findings)
    if isinstance(box, str):
        return BoxRow(name, label, None, size=size, fault=box)
    return BoxRow(name, label, box, size=size)
