"""The shard set of a plan: its rows, its files, what it leaves out, when it is reused. The jobs run
in this process, but for one test that runs them on Ray.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.errors import DataError, UsageError
from cluster.formats.read import SourcePaths
from cluster.prepare.plan import Options, plan_shards
from cluster.prepare.shard_job import find_report, run_job
from cluster.shards import quarantine, read, verify
from cluster.shards.index import ShardSet, open_shard_set
from cluster.storage import files
from tests.support.pictures import jpeg, noise, write_coco
from tests.support.preparing import (
    jobs_of,
    plan_coco,
    quiet,
    write_here,
    write_on_ray,
)


def test_every_image_once_with_its_boxes(small_coco: Path, finished: ShardSet) -> None:
    content = json.loads((small_coco / "annotations/instances_train.json").read_text())
    table = read.read_annotations(finished).to_pylist()
    assert sorted(row["image_id"] for row in table) == [image["id"] for image in content["images"]]
    assert [row["image_id"] for row in table] != sorted(row["image_id"] for row in table)
    labels = {1: 0, 3: 1, 7: 2, 18: 3, 44: 4}
    for row in table:
        own = [one for one in content["annotations"] if one["image_id"] == row["image_id"]]
        corners = [
            [x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in own)
        ]
        assert row["boxes"] == corners and row["labels"] == [
            labels[one["category_id"]] for one in own
        ]
        assert row["crowd"] == [bool(one["iscrowd"]) for one in own] and row["area"] == [
            one["area"] for one in own
        ]
    assert asdict(finished.counts) == {
        "images": 24,
        "boxes": len(content["annotations"]),
        "crowds": sum(one["iscrowd"] for one in content["annotations"]),
        "empty_images": 24 - len({one["image_id"] for one in content["annotations"]}),
        "quarantined": 0,
        "quarantined_images": 0,
        "quarantined_annotations": 0,
        "lost_annotations": 0,
        "dropped_images": 0,
        "listed_images": 24,
        "listed_annotations": len(content["annotations"]),
    }


def test_what_lvis_adds_reaches_the_set(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "lvis", {"a.jpg": jpeg(noise(20, 30)), "b.jpg": None})
    (tmp_path / "lvis/images/train/b.jpg").write_bytes(jpeg(noise(20, 30)[::-1]))
    annotations = tmp_path / "lvis/annotations/instances_train.json"
    content = json.loads(annotations.read_text())
    plain = write_here(plan_coco(folder, str(tmp_path / "plain")))
    assert not read.read_row_group(plain.locate_group(0)).schema.names.count("absent")
    content["categories"] = [
        {"id": id_, "name": name, "frequency": frequency}
        for id_, name, frequency in ((1, "thing", "f"), (2, "owl", "r"))
    ]
    content["images"][1] |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
    annotations.write_text(json.dumps(content))
    found = write_here(plan_coco(folder, str(tmp_path / "set")))
    assert [category.frequency for category in found.categories] == ["f", "r"]
    rows = {row["file_name"]: row for row in read.read_annotations(found).to_pylist()}
    assert (rows["a.jpg"]["absent"], rows["a.jpg"]["incomplete"]) == (None, None)
    assert (rows["b.jpg"]["absent"], rows["b.jpg"]["incomplete"]) == ([1], [0])
    verify.verify_shard_set(found, say=quiet)


def test_full_boxes_of_crowdhuman_are_cut_to_the_picture_and_none_is_lost_unsaid(
    tmp_path: Path,
) -> None:
    files.write_bytes(str(tmp_path / "images/a.jpg"), jpeg(noise(20, 30)))
    boxes = [{"tag": "person", "fbox": sides} for sides in ([-5, 2, 20, 40], [31, 0, 9, 9])]
    (tmp_path / "a.odgt").write_text(json.dumps({"ID": "a", "gtboxes": boxes}))
    source = SourcePaths("a", "crowdhuman", str(tmp_path / "a.odgt"), str(tmp_path / "images"))
    options = Options(max_quarantined_annotations=0.5)
    found = write_here(plan_shards([source], output=str(tmp_path / "set"), options=options))
    (row,) = read.read_annotations(found).to_pylist()
    # -5 + 20 = 15 and 2 + 40 = 42, in a picture of 30 x 20 px.
    assert row["boxes"] == [[0, 2, 15, 20]] and row["area"] == [15 * 18]
    assert found.index.repairs == {"boxes clipped to the picture": 1}
    (entry,) = quarantine.read_quarantine(found.uri)
    assert entry.where == "2 of a.jpg"
    assert entry.why == "its box has a side under 1 px inside the picture"


def test_stored_images_are_the_source_files(small_coco: Path, finished: ShardSet) -> None:
    for group in range(len(finished.rows_per_group)):
        for row in (
            read.read_row_group(finished.locate_group(group))
            .select(["file_name", "image"])
            .to_pylist()
        ):
            assert row["image"] == (small_coco / "images/train" / row["file_name"]).read_bytes()


def test_the_folder_holds_the_set_and_nothing_else(finished: ShardSet) -> None:
    assert len(finished.shards) >= 4
    wanted = [
        "index.json",
        "quarantine.parquet",
        "report.html",
        *(shard.name for shard in finished.shards),
    ]
    assert sorted(os.listdir(finished.uri)) == sorted(wanted)
    assert all(group.rows == 2 for shard in finished.shards for group in shard.row_groups[:-1])
    verify.verify_shard_set(finished)


def test_ray_and_a_bucket_give_the_digest_of_this_process_and_a_folder(
    small_coco: Path, finished: ShardSet, ray_cluster: str, bucket: str
) -> None:
    files.upload_folder(str(small_coco), f"{bucket}/coco")
    result = write_on_ray(plan_coco(f"{bucket}/coco", f"{bucket}/shards"))
    assert result.digest == finished.digest and result.counts == finished.counts
    assert open_shard_set(f"{bucket}/shards") == result
    verify.verify_shard_set(result)


def test_the_order_of_the_work_does_not_matter(
    small_coco: Path, finished: ShardSet, tmp_path: Path
) -> None:
    work = plan_coco(str(small_coco), str(tmp_path))
    for job in reversed(jobs_of(work)):
        run_job(job)
    said: list[str] = []
    result = write_on_ray(work, said.append)
    assert result.digest == finished.digest
    total = len(work.cuts)
    assert said == [f"{tmp_path}: reusing {total} of {total} shards from a run that did not finish"]


def test_a_finished_set_is_reused_or_refused_or_replaced(small_coco: Path, tmp_path: Path) -> None:
    first = write_here(plan_coco(str(small_coco), str(tmp_path)))
    said: list[str] = []
    again = write_here(plan_coco(str(small_coco), str(tmp_path)), said.append)
    assert again == first and said == [f"{tmp_path}: reusing the shard set that is already there"]
    with pytest.raises(
        UsageError,
        match=(
            "holds a shard set of another source or other options; give another folder or say"
            " --overwrite true"
        ),
    ):
        plan_coco(str(small_coco), str(tmp_path), seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    replaced = write_here(
        plan_coco(str(small_coco), str(tmp_path), shard_bytes=10**9, overwrite=True)
    )
    assert sorted(os.listdir(tmp_path)) == [
        "index.json",
        "notes.txt",
        "quarantine.parquet",
        "report.html",
        "shard-00000-of-00001.parquet",
    ]
    assert replaced.num_rows == first.num_rows and replaced.digest != first.digest


def test_bad_images_are_left_out_alone(tmp_path: Path) -> None:
    good = jpeg(noise(20, 30))
    grey, cmyk = io.BytesIO(), io.BytesIO()
    Image.new("L", (30, 20)).save(grey, "JPEG")
    Image.new("CMYK", (30, 20)).save(cmyk, "JPEG")
    pictures = {
        "good.jpg": good,
        "sub/png.jpg": jpeg(noise(20, 30), form="PNG"),
        "grey.jpg": grey.getvalue(),
        "cmyk.jpg": cmyk.getvalue(),
        "truncated.jpg": good[: len(good) // 2],
        "empty.jpg": b"",
        "text.jpg": b"not an image at all",
        "missing.jpg": None,
    }
    folder = write_coco(tmp_path / "coco", pictures)
    before = {
        str(path): path.read_bytes() for path in (tmp_path / "coco").rglob("*") if path.is_file()
    }
    result = write_here(plan_coco(folder, str(tmp_path / "out"), max_quarantined=0.5))
    assert sorted(read.read_annotations(result)["file_name"].to_pylist()) == [
        "cmyk.jpg",
        "good.jpg",
        "grey.jpg",
        "sub/png.jpg",
    ]
    whys = {record.where: record.why for record in quarantine.read_quarantine(result.uri)}
    assert set(whys) == {"truncated.jpg", "empty.jpg", "text.jpg", "missing.jpg"}
    assert (
        "truncated" in whys["truncated.jpg"]
        and "the file is empty" == whys["empty.jpg"]
        and "cannot identify" in whys["text.jpg"]
    )
    assert whys["missing.jpg"] == "the file is not in the images folder"
    assert result.counts.images == 4 and result.counts.quarantined_images == 4
    assert {
        str(path): path.read_bytes() for path in (tmp_path / "coco").rglob("*") if path.is_file()
    } == before


def test_too_many_bad_images_are_refused(tmp_path: Path) -> None:
    good = jpeg(noise(20, 30))
    folder = write_coco(
        tmp_path / "coco", {"a.jpg": good, "b.jpg": good, "c.jpg": b"", "d.jpg": b"text"}
    )
    with pytest.raises(
        DataError,
        match=(
            r"2 of 4 images had to be left out, --max_quarantined 0.25 allows 1: 1 x .*see"
            r" .*quarantine.parquet"
        ),
    ):
        write_here(plan_coco(folder, str(tmp_path / "out"), max_quarantined=0.25))
    assert len(quarantine.read_quarantine(str(tmp_path / "out"))) == 2
    assert not (tmp_path / "out/index.json").exists()
    # Half is allowed now, and the work already done counts.
    assert write_here(plan_coco(folder, str(tmp_path / "out"), max_quarantined=0.5)).num_rows == 2


def test_a_picture_that_changed_after_an_interruption_is_read_again(tmp_path: Path) -> None:
    folder = write_coco(
        tmp_path / "source",
        {"a.bmp": jpeg(noise(20, 30), form="BMP"), "b.bmp": jpeg(noise(20, 30) // 2, form="BMP")},
    )
    changes = {"shard_bytes": 1, "overwrite": True}
    work = plan_coco(folder, str(tmp_path / "out"), **changes)
    for job in jobs_of(work):
        run_job(job)
    other = jpeg(255 - noise(20, 30), form="BMP")
    files.write_bytes(f"{folder}/images/train/a.bmp", other)
    work = plan_coco(folder, str(tmp_path / "out"), **changes)
    # The other shard is kept: an interrupted --overwrite goes on as well.
    assert [find_report(job) is not None for job in jobs_of(work)].count(True) == 1
    result = write_here(work)
    rows = [
        row for n in range(2) for row in read.read_row_group(result.locate_group(n)).to_pylist()
    ]
    assert {row["file_name"]: row["image"] for row in rows}["a.bmp"] == other


def test_too_many_bad_annotations_are_refused(tmp_path: Path) -> None:
    folder = write_coco(
        tmp_path / "coco",
        {name: jpeg(noise(20, 30)) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")},
    )
    uri = f"{folder}/annotations/instances_train.json"
    content = json.loads(Path(uri).read_text())
    # One is seen while the JSON is read, the other when the size of the picture is known.
    content["annotations"][1]["category_id"] = 9
    content["annotations"][2]["bbox"] = [40, 3, 10, 10]
    files.write_json(uri, content)
    limit = (
        r"2 of 4 annotations had to be left out, --max_quarantined_annotations 0.25 allows 1: 1 x"
        r" its box .*; 1 x its category_id .*mend the anno"
    )
    with pytest.raises(DataError, match=limit):
        write_here(plan_coco(folder, str(tmp_path / "out"), max_quarantined_annotations=0.25))
    with pytest.raises(DataError, match="1 of 4 annotations had to be left out"):
        plan_coco(folder, str(tmp_path / "out"), max_quarantined_annotations=0.0)
    assert (
        write_here(
            plan_coco(folder, str(tmp_path / "out"), max_quarantined_annotations=0.5)
        ).counts.boxes
        == 2
    )


def test_a_set_of_which_no_object_is_left_is_refused(tmp_path: Path) -> None:
    pictures = {f"{n}.jpg": jpeg(noise(20, 30)) for n in range(2)}
    folder = write_coco(tmp_path / "coco", pictures)
    # All boxes are drawn outside.
    annotations = Path(folder, "annotations/instances_train.json")
    content = json.loads(annotations.read_text())
    for one in content["annotations"]:
        one["bbox"] = [40, 3, 10, 10]
    annotations.write_text(json.dumps(content))
    options: dict[str, Any] = {"max_quarantined_annotations": 1.0}
    with pytest.raises(DataError, match="none of the 2 annotations listed is left as an object"):
        write_here(plan_coco(folder, str(tmp_path / "out"), **options))
    accepted = write_here(
        plan_coco(folder, str(tmp_path / "out"), accept=("no_objects",), **options)
    )
    assert accepted.counts.objects == 0
