"""`retinaray shards`: what it prints, what it finds damaged, what it draws, and that it
writes nothing else.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.shards import index, quarantine, write
from cluster.shards.format import Category, Row, shard_name
from cluster.shards.index import ShardSet
from cluster.storage import files
from pipelines.command_line import run_verb
from pipelines.shards import ShardsConfig, main

ROOT = Path(__file__).parents[2]


def write_set(uri: str) -> ShardSet:
    """Three shards of two pictures each; picture n has a cat, and a dog where n is odd."""
    sink = io.BytesIO()
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(sink, "JPEG")
    cat, dog = [8, 8, 24, 24], [30, 30, 70, 50]
    written = []
    for n in range(3):
        rows = []
        for image_id in (2 * n, 2 * n + 1):
            boxes = np.array([cat, dog][: 1 + image_id % 2], np.float32)
            labels, crowds = [0, 1][: len(boxes)], [False, True][: len(boxes)]
            areas = [256, 800][: len(boxes)]
            rows.append(
                Row(
                    image_id,
                    f"{image_id}.jpg",
                    sink.getvalue(),
                    60,
                    80,
                    boxes,
                    labels,
                    crowds,
                    areas,
                    0,
                    bytes(32),
                )
            )
        written.append(write.write_shard(uri, shard_name(n, 3), rows, row_group_rows=2))
    counts = index.Counts(
        images=6, listed_images=7, boxes=9, listed_annotations=9, crowds=3, quarantined=1
    )
    quarantine.write_quarantine(
        uri, [quarantine.Quarantined("image", "9.jpg", "it is empty", "{}")]
    )
    categories = (Category(0, 1, "cat"), Category(1, 2, "dog"))
    return index.write_index(
        uri,
        index.Index(
            categories,
            tuple(written),
            counts,
            sources=(index.IndexedSource("one"),),
            repairs={"boxes clipped": 2},
        ),
    )


def look(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run_verb(ShardsConfig, main, description="Look.", argv=list(arguments))
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_it_prints_what_the_set_holds(tmp_path, capsys):
    opened = write_set(str(tmp_path))
    before = files.list_files(str(tmp_path))
    code, said, wrong = look(capsys, "--data", str(tmp_path))
    assert code == 0 and wrong == ""
    mib = sum(shard.bytes for shard in opened.shards) / 2**20
    assert said.splitlines() == [
        f"set         {tmp_path}",
        f"shards      3, {mib:.1f} MiB",
        "images      6 of 7 listed, of which 0 without objects",
        "boxes       9 of 9 listed, of 2 classes, of which 3 crowds",
        f"digest      {opened.digest}",
        "repaired    2 x boxes clipped",
        "left out    1 x it is empty (such as 9.jpg)",
    ]
    assert files.list_files(str(tmp_path)) == before


def test_a_sound_set_is_verified_in_a_bucket_too(bucket, capsys):
    write_set(f"{bucket}/cells")
    code, said, _ = look(capsys, "--data", f"{bucket}/cells", "--verify", "true")
    assert code == 0 and said.endswith(
        "verified    3 of 3 shards: every byte agrees with index.json\n"
    )


def test_every_damaged_shard_is_named(tmp_path, capsys):
    opened = write_set(str(tmp_path))
    first, second, third = (tmp_path / shard.name for shard in opened.shards)
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    third.unlink()
    code, said, wrong = look(capsys, "--data", str(tmp_path), "--verify", "true")
    assert code == 3
    assert (
        f"damaged     {first.name} has sha256" in said
        and f"damaged     {third.name} is in the index but not in the folder" in said
    )
    assert "verified" not in said and second.name not in said
    assert (
        wrong == f"error: {tmp_path}: 2 of 3 shards differ from index.json: {first.name},"
        f" {third.name}; run prepare with --overwrite true\n"
    )


def test_pictures_are_drawn_and_nothing_else_is_written(tmp_path, capsys):
    write_set(str(tmp_path / "set"))
    before = [(path, path.read_bytes()) for path in sorted((tmp_path / "set").iterdir())]
    code, said, _ = look(
        capsys, "--data", str(tmp_path / "set"), "--samples", "4", "--output", str(tmp_path / "out")
    )
    assert code == 0 and said.endswith(f"drawn       4 pictures in {tmp_path / 'out'}\n")
    drawn = sorted((tmp_path / "out").iterdir())
    assert len(drawn) == 4 and all(path.name in [f"{n}.png" for n in range(6)] for path in drawn)
    pixels = np.asarray(Image.open(drawn[0]).convert("RGB")).reshape(-1, 3).astype(int)
    # The first class's blue is there, on the grey of the picture.
    assert (np.abs(pixels - (0x00, 0x72, 0xB2)).max(axis=1) < 30).sum() > 100 and (
        np.abs(pixels - 90).max(axis=1) < 6
    ).mean() > 0.3
    assert [(path, path.read_bytes()) for path in sorted((tmp_path / "set").iterdir())] == before


def test_more_pictures_than_there_are(tmp_path, bucket, capsys):
    write_set(str(tmp_path))
    code, said, _ = look(
        capsys, "--data", str(tmp_path), "--samples", "50", "--output", f"{bucket}/look"
    )
    assert code == 0 and f"drawn       6 pictures in {bucket}/look" in said
    assert [uri for uri, _ in files.list_files(f"{bucket}/look")] == [
        f"{bucket}/look/{n}.png" for n in range(6)
    ]


def test_a_shard_that_cannot_be_read_is_told_plainly(tmp_path, capsys):
    opened = write_set(str(tmp_path))
    for damage in (lambda path: path.write_bytes(b"PAR1 nothing of the kind PAR1"), Path.unlink):
        damage(tmp_path / opened.shards[1].name)
        code, _, wrong = look(
            capsys, "--data", str(tmp_path), "--samples", "2", "--output", str(tmp_path / "out")
        )
        assert (
            code == 3
            and len(wrong.splitlines()) == 1
            and opened.shards[1].name in wrong
            and "Traceback" not in wrong
        )


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.shards", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: python -m pipelines.shards [--config FILE] --data ...")
    assert (
        "  --verify  true | false; default false" in done.stdout
        and "  --samples  integer, at least 0, at most 1000; default 0" in done.stdout
    )
