"""The verb `prepare`: what it prints, its exit codes, several sources, splits."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cluster.compute import session
from cluster.shards import read
from cluster.shards.index import IndexedSource, open_shard_set
from cluster.storage import files
from detector.image import MAX_PIXELS
from pipelines.command_line import run_verb
from pipelines.prepare import PrepareConfig, main
from tests.support.pictures import jpeg, noise, write_coco


def run_prepare(*flags: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run_verb(PrepareConfig, main, description="x", argv=list(flags))
    return int(caught.value.code or 0)


def test_the_verb_reports(
    small_coco: Path, ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = {f"{n}.jpg": jpeg(noise(20, 30)) for n in range(3)} | {"bad.jpg": b"text"}
    folder = write_coco(tmp_path / "coco", pictures)
    flags = (
        "--annotations",
        f"{folder}/annotations/instances_train.json",
        "--images",
        f"{folder}/images/train",
        "--output",
        str(tmp_path / "out"),
    )
    assert run_prepare(*flags, "--max_quarantined", "0.3") == 0
    out = capsys.readouterr().out
    assert f"set         {tmp_path}/out\nshards      1, 0.0 MiB\n" in out
    assert "images      3 of 4 listed, of which 0 without objects" in out
    assert (
        "left out    1 x it cannot be decoded: cannot identify image file (such as bad.jpg)" in out
    )
    assert open_shard_set(str(tmp_path / "out")).digest in out
    assert run_prepare(*flags, "--seed", "1") == 2
    assert "--overwrite" in capsys.readouterr().err


def test_exit_codes_of_bad_input(
    small_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = (
        ("--images", str(small_coco / "images/train")),
        ("--output", str(tmp_path / "out")),
    )
    (tmp_path / "malformed.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.json").write_text('{"images": [], "annotations": [], "categories": []}')
    good = str(small_coco / "annotations/instances_train.json")
    for flags, code, message in (
        (
            ("--annotations", str(tmp_path / "none.json"), *images, *output),
            2,
            "none.json: there is no such file",
        ),
        (
            ("--annotations", str(tmp_path / "malformed.json"), *images, *output),
            3,
            "line 1, column 2",
        ),
        (
            ("--annotations", str(tmp_path / "zero.json"), *images, *output),
            3,
            "list of images is empty",
        ),
        (
            ("--annotations", good, "--images", str(tmp_path / "none"), *output),
            2,
            "none: there is no such file or folder",
        ),
        (
            ("--annotations", good, "--images", str(tmp_path / "empty"), *output),
            3,
            "24 of 24 images had to be left out",
        ),
        (
            ("--annotations", good, *images, "--output", str(tmp_path / "zero.json")),
            2,
            "is a file, a folder is needed",
        ),
        (("--annotations", good, *images, *output, "--row_group_rows", "0"), 2, "row_group_rows"),
    ):
        assert run_prepare(*flags) == code
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("error: ")


def test_no_larger_picture_is_stored_than_training_reads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ("--annotations", "a.json", "--images", "i", "--output", "o")
    assert run_prepare(*places, "--max_pixels", str(MAX_PIXELS + 1)) == 2
    assert (
        f"max_pixels '{MAX_PIXELS + 1}': must be less than or equal to {MAX_PIXELS}"
        in capsys.readouterr().err
    )


def test_check_looks_at_everything_and_writes_nothing(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_coco(
        tmp_path / "coco",
        {
            "a.jpg": jpeg(noise(20, 30)),
            "b.jpg": jpeg(noise(21, 30)),
            "bad.jpg": b"text",
            "gone.jpg": None,
        },
    )
    places = (
        "--annotations",
        f"{folder}/annotations/instances_train.json",
        "--images",
        f"{folder}/images/train",
    )
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert run_prepare(*places, "--check", "true", "--max_quarantined", "0.5") == 0
    out = capsys.readouterr().out
    for line in (
        "images      2 of 4 listed, of which 0 without objects",
        "boxes       2 of 4 listed, of 1 classes, of which 0 crowds",
        "repaired    1 x image sizes wrong in the annotations, taken from the pixels",
        "left out    1 x it cannot be decoded: cannot identify image file (such as bad.jpg)",
        "left out    1 x the file is not in the images folder (such as gone.jpg)",
        "left out    2 x an annotation of an image that was left out",
    ):
        assert line in out
    assert not [line for line in out.splitlines() if line.startswith(("shards ", "digest "))]
    # Too much of it: the report is there all the same, then the reason.
    assert run_prepare(*places, "--check", "true", "--output", str(tmp_path / "out")) == 3
    said = capsys.readouterr()
    assert (
        "left out    1 x it cannot be decoded" in said.out
        and "2 of 4 images had to be left out" in said.err
        and "quarantine.parquet" not in said.err
    )
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_several_sources_by_configuration(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_coco(
        tmp_path / "first", {"a.jpg": jpeg(noise(20, 30)), "b.jpg": jpeg(noise(20, 31))}
    )
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/classes.txt").write_text("other\nthing\n")
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    source = {
        "name": "one",
        "annotations": f"{first}/annotations/instances_train.json",
        "images": f"{first}/images/train",
    }
    other = {
        "name": "two",
        "format": "yolo",
        "annotations": str(tmp_path / "labels"),
        "images": source["images"],
    }
    # JSON is YAML.
    files.write_json(
        str(tmp_path / "prepare.yaml"),
        {"sources": [source, other], "output": str(tmp_path / "out")},
    )
    assert run_prepare("--config", str(tmp_path / "prepare.yaml")) == 0
    out = capsys.readouterr().out
    assert (
        "source      2 images of one (coco)" in out and "source      2 images of two (yolo)" in out
    )
    assert "duplicate   2 x the picture of another image (such as a.jpg = a.jpg)" in out
    opened = open_shard_set(str(tmp_path / "out"))
    assert opened.class_names == ["thing", "other"]
    assert [replace(one, digest="") for one in opened.index.sources] == [
        IndexedSource("one", "coco", image_id_offset=0, images=2),
        IndexedSource("two", "yolo", image_id_offset=2, images=2),
    ]
    rows = {row["image_id"]: row for row in read.read_annotations(opened).to_pylist()}
    # The second source's image 1 is 3: a.jpg of 30 x 20 px, half of it around the middle.
    assert sorted(rows) == [0, 1, 3, 4] and (
        rows[3]["source"],
        rows[3]["boxes"],
        rows[3]["labels"],
    ) == (1, [[7.5, 5, 22.5, 15]], [0])


def test_wrong_sources_are_one_plain_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"name": "one", "annotations": "a.json", "images": "i"}
    for sources, flags, message in (
        ([good, good], (), "sources: two have the name 'one'; give each its own"),
        (
            [good],
            ("--annotations", "a.json"),
            "sources is given together with annotations or images",
        ),
        ([{**good, "format": "xml"}], (), "sources.format 'xml': must be 'coco', 'voc'"),
        ([{"name": "one"}], (), "sources.annotations is required"),
        ([{**good, "labels": "x"}], (), "sources.labels is not an option"),
        ([], (), "annotations must be given, or sources for several"),
    ):
        assert (
            run_prepare("--sources", json.dumps(sources), "--output", str(tmp_path / "out"), *flags)
            == 2
        )
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_zip_of_cvat_becomes_a_set(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = (10, 20, 50, 60)
    picture = Image.new("RGB", (96, 64), "navy")
    picture.paste("yellow", block)
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    corners = 'xtl="10.00" ytl="20.00" xbr="50.00" ybr="60.00"'
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as packed:
        packed.writestr("images/a b.png", sink.getvalue())
        packed.writestr(
            "annotations.xml",
            '<annotations><image id="5" name="a b.png" width="96" height="64">'
            f'<box label="cat" {corners}/></image></annotations>',
        )
    given = ("--annotations", f"{tmp_path}/pets.zip")
    assert run_prepare(*given, "--output", f"{tmp_path}/out") == 0
    said = "pets.zip: format cvat, annotations in annotations.xml, pictures in images"
    assert said in capsys.readouterr().out
    (row,) = read.read_annotations(open_shard_set(f"{tmp_path}/out")).to_pylist()
    assert (row["image_id"], row["file_name"], row["boxes"]) == (5, "a b.png", [list(block)])
    assert run_prepare(*given, "--images", f"{tmp_path}/none", "--check", "true") == 2
    assert run_prepare(*given, "--output", f"{tmp_path}/pets.zip/out") == 2


def test_two_splits_of_one_source(ray_cluster: str, small_coco: Path, tmp_path: Path) -> None:
    source = (
        "--annotations",
        f"{small_coco}/annotations/instances_train.json",
        "--images",
        f"{small_coco}/images/train",
    )
    sets = []
    for split in ("train", "val"):
        assert (
            run_prepare(
                *source, "--split", split, "--val_share", "0.3", "--output", str(tmp_path / split)
            )
            == 0
        )
        sets.append(open_shard_set(str(tmp_path / split)))
    parts = [set(read.read_columns(one, ["image_id"])["image_id"].to_pylist()) for one in sets]
    assert all(parts) and not parts[0] & parts[1]
    assert parts[0] | parts[1] == {100 + 3 * number for number in range(24)}
    assert sets[0].categories == sets[1].categories and [
        one.counts.listed_images for one in sets
    ] == [len(part) for part in parts]


def test_a_canvas_on_which_no_anchor_fits_is_told(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a command that finds the set finished: its report is made for the canvas given."""
    # Boxes of 10 x 10 px, which stay as they are on this canvas: 100 of the 1024 px^2 of an anchor.
    pictures = {f"{n}.jpg": jpeg(noise(64, 96)) for n in range(6)}
    folder = write_coco(tmp_path / "coco", pictures, size=(64, 96))
    typed = [
        f"--annotations={folder}/annotations/instances_train.json",
        f"--images={folder}/images/train",
        f"--output={tmp_path}/out",
    ]
    assert run_prepare(*typed) == 0
    assert "no anchor" not in capsys.readouterr().out
    assert "192 x 128 px" in (tmp_path / "out/report.html").read_text()
    assert run_prepare(*typed, "--canvas.height=64", "--canvas.width=96") == 0
    out = capsys.readouterr().out
    assert "reusing the shard set" in out
    assert "warning     many objects of 'thing' (100%) have no anchor with an IoU of 0.4" in out
    assert "96 x 64 px" in (tmp_path / "out/report.html").read_text()


def test_a_plan_reads_no_picture_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "connect", lambda *_, **__: pytest.fail("nothing is started"))
    # No picture at all: only their number and sizes are looked at.
    folder = write_coco(tmp_path / "coco", {f"{n}.jpg": b"x" * 1000 for n in range(5)})
    flags = (
        *("--annotations", f"{folder}/annotations/instances_train.json"),
        *("--images", f"{folder}/images/train", "--output", str(tmp_path / "out")),
    )
    assert run_prepare(*flags, "--plan", "true") == 0
    out = capsys.readouterr().out
    assert "read     5 images, 0.0 MiB, in " in out
    assert f"write    1 shards in {tmp_path}/out" in out
    assert not (tmp_path / "out").exists()
    assert run_prepare(*flags, "--plan", "true", "--check", "true") == 2
