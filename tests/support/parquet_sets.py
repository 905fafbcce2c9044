"""Small Parquet files of pictures and objects, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def row(number: int, *boxes: Sequence[float], data: bytes = b"x", **fields: Any) -> Row:
    """A picture of 100 x 80 px with boxes of category 1."""
    return {
        "image": {"bytes": data, "path": f"{number}.jpg"},
        "image_id": number,
        "width": 100,
        "height": 80,
        "objects": {"bbox": [list(box) for box in boxes], "category": [1] * len(boxes)},
        **fields,
    }


def write(
    path: Path,
    rows: Sequence[Row],
    *,
    names: Sequence[str] | None = ("cat", "dog"),
    row_group_size: int = 100,
) -> str:
    """`names` go into the schema, as a ClassLabel."""
    table = pa.Table.from_pylist(list(rows))
    if names is not None:
        category = {"names": list(names), "_type": "ClassLabel"}
        objects = {"feature": {"category": category}, "_type": "Sequence"}
        features = {"info": {"features": {"image": {"_type": "Image"}, "objects": objects}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)
