"""The lines about a shard set for the terminal."""

from __future__ import annotations

from cluster.reports.summary import summary_lines
from cluster.shards import index
from cluster.shards.format import Category, Shard
from cluster.shards.quarantine import Quarantined


def test_lines_for_the_terminal():
    content = index.Index(
        categories=(Category(0, 1, "cat"), Category(1, 2, "dog")),
        shards=tuple(
            Shard(name, 1, size, "", (), "") for name, size in (("a", 1 << 20), ("b", 1 << 19))
        ),
        counts=index.Counts(
            images=9,
            listed_images=11,
            empty_images=2,
            boxes=30,
            listed_annotations=37,
            crowds=1,
            lost_annotations=7,
        ),
        sources=(
            index.IndexedSource("street", "coco", images=6),
            index.IndexedSource("old", "voc", images=3),
        ),
        repairs={"boxes clipped to the picture": 4},
        duplicates=index.Duplicates(
            {"": 2, "runs/train": 1}, (index.NamedDuplicate("c.jpg", "d.jpg", ""),)
        ),
        set_digest="abc",
    )
    lvis = [Category(0, 1, "cat", "f"), Category(1, 2, "owl", "r"), Category(2, 3, "ox", "f")]
    assert summary_lines(index.Index(tuple(lvis)), [])[1] == (
        "boxes       0 of 0 listed, of 3 classes (1 rare, 2 frequent), of which 0 crowds"
    )
    left_out = [
        Quarantined("image", name, "it is truncated", "", f"of {name}")
        for name in ("b.jpg", "a.jpg")
    ]
    assert summary_lines(content, left_out) == [
        "shards      2, 1.5 MiB",
        "images      9 of 11 listed, of which 2 without objects",
        "boxes       30 of 37 listed, of 2 classes, of which 1 crowds",
        "source      6 images of street (coco)",
        "source      3 images of old (voc)",
        "digest      abc",
        "repaired    4 x boxes clipped to the picture",
        "left out    2 x it is truncated (such as b.jpg: of b.jpg)",
        "left out    7 x an annotation of an image that was left out",
        "duplicate   2 x the picture of another image (such as c.jpg = d.jpg)",
        "leak        1 x a picture that is also in runs/train",
    ]
