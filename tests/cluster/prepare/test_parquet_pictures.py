"""A set of pictures inside Parquet files, from the rows to the shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UsageError
from cluster.formats.read import SourcePaths
from cluster.prepare.plan import Options, Plan, plan_shards
from cluster.prepare.write import write_shards
from cluster.shards.read import read_annotations, read_columns
from detector.image import decode_image
from tests.support.parquet_sets import row, write
from tests.support.pictures import jpeg
from tests.support.preparing import lines_of, quiet, run_here


def picture(number: int) -> bytes:
    """80 x 100 px in black with a white block: x 10 + number to 50, y 20 to 60."""
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[20:60, 10 + number : 50] = 255
    return jpeg(pixels, form="PNG")


@pytest.fixture
def source(tmp_path: Path) -> SourcePaths:
    rows = [row(n, (10 + n, 20, 40 - n, 40), data=picture(n)) for n in range(12)]
    rows[5]["image"]["bytes"] = b"no picture"
    write(tmp_path / "data/a.parquet", rows[:7], row_group_size=3)
    write(tmp_path / "data/b.parquet", rows[7:], row_group_size=3)
    return SourcePaths("a", "parquet_xywh", str(tmp_path / "data"), None)


def plan(source: SourcePaths, output: Path) -> Plan:
    options = Options(max_quarantined=0.1, shard_bytes=1000)
    return plan_shards([source], output=str(output), options=options)


def test_boxes_lie_on_what_the_pictures_show(source: SourcePaths, tmp_path: Path) -> None:
    made = plan(source, tmp_path / "set")
    assert len(made.cuts) > 1
    run_here(made)
    prepared = write_shards(made, say=quiet)
    assert prepared.shard_set is not None
    table = read_columns(prepared.shard_set, ["image_id", "file_name", "image", "boxes", "sha256"])
    found = {one["image_id"]: one for one in table.to_pylist()}
    assert set(found) == set(range(12)) - {5}
    for number, one in found.items():
        ((x1, y1, x2, y2),) = np.array(one["boxes"], int)
        pixels = decode_image(one["image"])
        assert pixels[y1:y2, x1:x2].min() == 255 and (x2 - x1) * (y2 - y1) == (40 - number) * 40
        assert one["sha256"] == hashlib.sha256(picture(number)).digest()
    assert found[3]["file_name"] == "a.parquet#3" and found[8]["file_name"] == "b.parquet#1"
    assert any(
        line.startswith("left out    1 x it cannot be decoded") and "a.parquet#5" in line
        for line in lines_of(prepared)
    )


def test_a_finished_set_is_found_again_until_the_file_changes(
    source: SourcePaths, tmp_path: Path
) -> None:
    run_here(made := plan(source, tmp_path / "set"))
    write_shards(made, say=quiet)
    assert plan(source, tmp_path / "set").finished is not None
    write(tmp_path / "data/b.parquet", [row(7, (17, 20, 33, 40), data=picture(7))])
    with pytest.raises(UsageError, match="holds a shard set of another source"):
        plan(source, tmp_path / "set")


def test_a_file_may_lie_beside_the_output(source: SourcePaths, tmp_path: Path) -> None:
    file = source._replace(annotations=f"{source.annotations}/b.parquet")
    (tmp_path / "data/another.jpg").write_bytes(b"x")
    made = plan(file, tmp_path / "data/set")
    run_here(made)
    prepared = write_shards(made, say=quiet)
    assert prepared.shard_set is not None and prepared.index.passed_over == {}
    assert len(read_annotations(prepared.shard_set)) == 5
    with pytest.raises(UsageError, match="is --annotations .* or lies in it"):
        plan(source, tmp_path / "data/set")
