"""Read the boxes of OpenImages: a CSV file such as train-annotations-bbox.csv, a line for each box.

    ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,...,IsGroupOf,...
    000002b66c9c498e,xclick,/m/01g317,1,0.0125,0.1953,0.1484,0.5875,0,...,0,...

Boxes are fractions of the picture. The picture of an ImageID is the file of that name in the images
folder, whatever its suffix and the folder below. A box around a group of objects (IsGroupOf is 1),
which the evaluation of OpenImages neither rewards nor punishes, becomes a crowd.

Classes are MIDs (/m/011k07). Their names stand in class-descriptions-boxable.csv beside the file,
which gives the order of the labels too; without it the MIDs that occur, sorted, are the names. See
`box_rows` for the rest.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Mapping
from dataclasses import replace

from cluster.errors import DataError
from cluster.formats.annotations import Findings, Keep, Source, keep_all
from cluster.formats.box_rows import BoxRow, Classes, read_boxes, read_corners
from cluster.formats.names import composed
from cluster.storage import files
from cluster.storage.pictures import list_pictures
from cluster.storage.uris import join

CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("imageid", "labelname", *CORNERS)
NAMES = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv")
MARGIN = 0.01
"""A number farther outside 0..1 than this is no fraction; boxes are clipped to the picture
later.
"""
GROUPS = "boxes around a group of objects (IsGroupOf), stored as crowds"
MIDS = f"classes named by their MIDs, because no {NAMES[0]} lies beside the annotations"
BAD_FRACTIONS = "its numbers are not shares of the picture, from 0 to 1"


def read_openimages(annotations: str, images: str, keep: Keep = keep_all) -> Source:
    """Read the file `annotations`, whose pictures are below the folder `images`. `DataError` where
    the names of the classes cannot be read; other errors: see `read_boxes`.
    """
    classes = _read_class_names(posixpath.dirname(annotations))
    pictures: dict[str, str] = {}
    for uri in list_pictures(images).uris:
        name = uri[len(images) + 1 :]
        pictures.setdefault(composed(posixpath.splitext(posixpath.basename(name))[0]), name)

    def parse(fields: Mapping[str, str], findings: Findings) -> BoxRow:
        image_id = fields["imageid"]
        # Without its picture the image is missed under the name that OpenImages gives it.
        name = pictures.get(composed(image_id), f"{image_id}.jpg") if image_id else ""
        box = read_corners(fields, CORNERS, findings)
        if isinstance(box, str):
            return BoxRow(name, fields["labelname"], None, fault=box)
        if min(box) < -MARGIN or max(box) > 1 + MARGIN:
            return BoxRow(name, fields["labelname"], None, fault=BAD_FRACTIONS)
        crowd = fields.get("isgroupof") == "1"
        findings.repairs[GROUPS] += crowd
        return BoxRow(name, fields["labelname"], box, crowd)

    source = read_boxes(
        annotations,
        COLUMNS,
        parse,
        keep,
        classes=classes,
        normalised=True,
        identity=sorted(pictures.values()),
    )
    if classes is None:
        source = replace(source, repairs={**source.repairs, MIDS: len(source.categories)})
    return source


def _read_class_names(folder: str) -> Classes | None:
    """The names by MID. The newer file has a first line with the names of its columns."""
    uri = next((join(folder, name) for name in NAMES if files.exists(join(folder, name))), None)
    if uri is None:
        return None
    try:
        text = files.read_bytes(uri).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{uri}: is no CSV file in UTF-8 ({error}); download it again") from error
    names: dict[str, str] = {}
    for row in rows[1:] if rows and rows[0][0] == "LabelName" else rows:
        if len(row) != 2 or not all(field.strip() for field in row) or row[0] in names:
            raise DataError(
                f"{uri}: {','.join(row)[:60]!r} is not a MID and its name, or names a MID again;"
                " download it again"
            )
        names[row[0].strip()] = row[1].strip()
    if not names:
        raise DataError(f"{uri}: names no class; a detector needs at least one")
    return Classes(names, posixpath.basename(uri))
