from __future__ import annotations

import pyarrow as pa

from cluster.shards.format import (
    SCHEMA,
)


def test_stored_columns_are_the_published_ones() -> None:
    boxes = pa.list_(pa.list_(pa.float32(), 4))
    assert SCHEMA.names == [
        "image_id",
        "file_name",
        "image",
        "height",
        "width",
        "boxes",
        "labels",
        "crowd",
        "area",
        "source",
        "sha256",
    ]
    assert SCHEMA.field("boxes").type == boxes and SCHEMA.field("image_id").type == pa.int64()
