from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.errors import DataError, PlainError, UsageError
from cluster.formats.annotations import Annotation, ImageRecord
from cluster.formats.read import SourcePaths
from cluster.prepare import image as intake
from cluster.prepare.plan import Plan, Prepared, cut_shards, plan_shards, write_shards
from cluster.prepare.tasks import ShardJob, find_report, run_job, run_jobs
from cluster.reports.summary import summary_lines
from cluster.shards import quarantine, read, verify
from cluster.shards.format import Row
from cluster.shards.index import IndexedSource, ShardSet, open_shard_set
from cluster.storage import files
from detector.image import MAX_PIXELS, decode_image
from pipelines.command_line import run_verb
from pipelines.prepare import PrepareConfig, main

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {
    "seed": 0,
    "shard_bytes": 100_000,
    "row_group_rows": 2,
    "max_quarantined": 0.05,
    "overwrite": False,
}


def quiet(line: str) -> None:
    return None


def plan(folder: str, output: str, **changes: Any) -> Plan:
    place = SourcePaths(
        "train", "coco", f"{folder}/annotations/instances_train.json", f"{folder}/images/train"
    )
    return plan_shards([place], **{**OPTIONS, "output": output, **changes})


def write(plan: Plan, say: Callable[[str], None] = quiet) -> ShardSet:
    """The set of a plan that has an output."""
    result = write_shards(plan, say=say).shard_set
    assert result is not None
    return result


def told(prepared: Prepared) -> list[str]:
    return summary_lines(prepared.index, prepared.quarantined)


def jobs(plan: Plan) -> list[ShardJob]:
    return [plan.job(number) for number in range(len(plan.cuts))]


def jpeg(pixels: np.ndarray, *, turn: int | None = None, form: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    exif = Image.Exif()
    if turn is not None:
        exif[intake.ORIENTATION] = turn
    Image.fromarray(pixels).save(
        sink, form, exif=exif, **({"quality": 95} if form == "JPEG" else {})
    )
    return sink.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def write_coco(
    folder: Path, pictures: dict[str, bytes | None], *, size: tuple[int, int] = (20, 30)
) -> str:
    """Every name an image with one box; where the bytes are None there is no file."""
    images = [
        {"id": n, "file_name": name, "height": size[0], "width": size[1]}
        for n, name in enumerate(pictures)
    ]
    boxes = [
        {
            "id": n,
            "image_id": n,
            "category_id": 1,
            "bbox": [2, 3, 10, 10],
            "area": 100,
            "iscrowd": 0,
        }
        for n in range(len(pictures))
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    files.write_json(str(folder / "annotations/instances_train.json"), content)
    (folder / "images/train").mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        if data is not None:
            files.write_bytes(str(folder / "images/train" / name), data)
    return str(folder)


@pytest.fixture(scope="module")
def finished(
    small_coco: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> ShardSet:
    """The small set, prepared without disturbance."""
    return write(plan(str(small_coco), str(tmp_path_factory.mktemp("finished"))))


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


def test_a_bucket_gives_the_digest_of_a_folder(
    small_coco: Path, finished: ShardSet, bucket: str
) -> None:
    files.upload_folder(str(small_coco), f"{bucket}/coco")
    result = write(plan(f"{bucket}/coco", f"{bucket}/shards"))
    assert result.digest == finished.digest and result.counts == finished.counts
    assert open_shard_set(f"{bucket}/shards") == result
    verify.verify_shard_set(result)


def test_the_order_of_the_work_does_not_matter(
    small_coco: Path, finished: ShardSet, tmp_path: Path
) -> None:
    work = plan(str(small_coco), str(tmp_path))
    for job in reversed(jobs(work)):
        run_job(job)
    said: list[str] = []
    result = write(work, said.append)
    assert result.digest == finished.digest
    assert said == [
        f"{tmp_path}: {len(work.cuts)} of {len(work.cuts)} shards are there from a run that did not"
        " finish; reused"
    ]


def test_the_seed_gives_the_order(small_coco: Path, tmp_path: Path) -> None:
    def order(seed: int) -> list[int]:
        return [
            image.image_id
            for job in jobs(plan(str(small_coco), str(tmp_path), seed=seed))
            for image in job.images
        ]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


def test_cutting_by_size() -> None:
    cuts = cut_shards([40, 40, 40, 40, 40, 40], seed=0, shard_bytes=100)
    assert [len(cut) for cut in cuts] == [2, 2, 2]
    # One file larger than a shard stands alone.
    assert [len(cut) for cut in cut_shards([500, 500, 500], seed=0, shard_bytes=100)] == [1, 1, 1]
    assert cut_shards([], seed=0, shard_bytes=100) == []


class Stop(Exception):
    """Stands for whatever ends a driver."""


def test_an_interrupted_run_is_continued(
    small_coco: Path, finished: ShardSet, tmp_path: Path
) -> None:
    def stop_at_the_second(line: str) -> None:
        if line.startswith("2 of"):
            raise Stop

    with pytest.raises(Stop):
        write(plan(str(small_coco), str(tmp_path)), stop_at_the_second)
    with pytest.raises(UsageError, match="not a shard set"):
        open_shard_set(str(tmp_path))
    said: list[str] = []
    result = write(plan(str(small_coco), str(tmp_path)), said.append)
    assert "shards are there from a run that did not finish; reused" in said[0]
    assert result.digest == finished.digest
    # Tasks of the interrupted run go on here, where its driver still lives, and may be about to
    # replace a shard by the same one.
    assert sorted(
        name for name in os.listdir(tmp_path) if not name.startswith(".partial-")
    ) == sorted(os.listdir(finished.uri))


@pytest.mark.integration
def test_a_killed_driver_leaves_no_set_and_a_second_run_finishes_it(
    ray_cluster: str, tmp_path: Path
) -> None:
    # Noise compresses badly: each file takes more than half a MiB, so each shard of at most one MiB
    # holds one.
    data = jpeg(noise(640, 800))
    assert 2**19 < len(data) < 2**20
    folder = write_coco(
        tmp_path / "coco", {f"{number:02d}.jpg": data for number in range(30)}, size=(640, 800)
    )
    command = [
        *(
            sys.executable,
            "-m",
            "pipelines.prepare",
            "--ray.address",
            ray_cluster,
            "--shard_size_mib",
            "1",
            "--row_group_rows",
            "2",
        ),
        *(
            "--annotations",
            f"{folder}/annotations/instances_train.json",
            "--images",
            f"{folder}/images/train",
        ),
        *("--output", str(tmp_path / "out")),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        seen = next((line for line in driver.stdout if "of 30 shards" in line), "")
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL and seen
    assert not (tmp_path / "out/index.json").exists()

    said: list[str] = []
    result = write(plan(folder, str(tmp_path / "out"), shard_bytes=2**20), said.append)
    assert "of 30 shards are there from a run that did not finish; reused" in said[0]
    undisturbed = write(plan(folder, str(tmp_path / "other"), shard_bytes=2**20))
    assert result.num_rows == 30 and result.digest == undisturbed.digest
    verify.verify_shard_set(result)


def test_a_note_without_its_shard_is_not_believed(small_coco: Path, tmp_path: Path) -> None:
    work = plan(str(small_coco), str(tmp_path))
    first, second = jobs(work)[:2]
    run_job(first)
    run_job(second)
    assert find_report(first) is not None
    os.truncate(tmp_path / first.name, 100)
    assert find_report(first) is None
    other = plan(str(small_coco), str(tmp_path), row_group_rows=3)
    assert find_report(second) is not None and find_report(other.job(1)) is None


def test_a_finished_set_is_reused_or_refused_or_replaced(
    small_coco: Path, ray_cluster: str, tmp_path: Path
) -> None:
    first = write(plan(str(small_coco), str(tmp_path)))
    said: list[str] = []
    again = write(plan(str(small_coco), str(tmp_path)), said.append)
    assert again == first and said == [
        f"{tmp_path}: the shard set is already there and fits source and options; reused"
    ]
    with pytest.raises(
        UsageError,
        match=(
            "holds a shard set of another source or other options; give another folder or say"
            " --overwrite true"
        ),
    ):
        plan(str(small_coco), str(tmp_path), seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    replaced = write(plan(str(small_coco), str(tmp_path), shard_bytes=10**9, overwrite=True))
    assert sorted(os.listdir(tmp_path)) == [
        "index.json",
        "notes.txt",
        "quarantine.parquet",
        "report.html",
        "shard-00000-of-00001.parquet",
    ]
    assert replaced.num_rows == first.num_rows and replaced.digest != first.digest


def test_bad_images_cost_themselves(tmp_path: Path, ray_cluster: str) -> None:
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
    result = write(plan(folder, str(tmp_path / "out"), max_quarantined=0.5))
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
        and "0 bytes" in whys["empty.jpg"]
        and "cannot identify" in whys["text.jpg"]
    )
    assert whys["missing.jpg"] == "the file is not in the images folder"
    assert result.counts.images == 4 and result.counts.quarantined_images == 4
    assert {
        str(path): path.read_bytes() for path in (tmp_path / "coco").rglob("*") if path.is_file()
    } == before


def test_too_many_bad_images_are_refused(tmp_path: Path, ray_cluster: str) -> None:
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
        write(plan(folder, str(tmp_path / "out"), max_quarantined=0.25))
    assert len(quarantine.read_quarantine(str(tmp_path / "out"))) == 2
    assert not (tmp_path / "out/index.json").exists()
    # Half is allowed now, and the work already done counts.
    assert write(plan(folder, str(tmp_path / "out"), max_quarantined=0.5)).num_rows == 2


def test_missing_images_are_refused_before_any_work(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": None, "b.jpg": None})
    with pytest.raises(
        DataError,
        match=(
            r"2 of 2 images had to be left out, none is left: 2 x the file is not in the images"
            r" folder, such as a.jpg"
        ),
    ):
        plan(folder, str(tmp_path / "out"), max_quarantined=1.0)
    assert len(quarantine.read_quarantine(str(tmp_path / "out"))) == 2


@pytest.mark.parametrize("bad", [28, 29, 30])
def test_a_share_allows_whole_records(tmp_path: Path, bad: int) -> None:
    # 29 % of 100 are 29, though 0.29 * 100 is 28.999999999999996 in floating point.
    folder = write_coco(
        tmp_path / "coco", {f"{n:02}.jpg": None if n < bad else b"x" for n in range(100)}
    )
    if bad <= 29:
        assert len(plan(folder, str(tmp_path / "out"), max_quarantined=0.29).quarantined) == bad
    else:
        with pytest.raises(
            DataError, match="30 of 100 images had to be left out, --max_quarantined 0.29 allows 29"
        ):
            plan(folder, str(tmp_path / "out"), max_quarantined=0.29)


def test_places_that_are_not_there_are_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": b"x"})
    monkeypatch.setattr(files, "open_input", None)
    with pytest.raises(UsageError, match="nowhere: there is no such file or folder"):
        plan(folder, str(tmp_path / "out"), against=(str(tmp_path / "nowhere"),))
    Path(f"{folder}/images").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="images/train: there is no such file or folder"):
        plan(folder, str(tmp_path / "out"))


def test_the_source_is_not_a_target(small_coco: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in small_coco.rglob("*") if path.is_file()}
    link = tmp_path / "link"
    link.symlink_to(small_coco / "images")
    for output in (
        small_coco / "images/train",
        small_coco / "images/train/shards",
        link / "train",
        link / "train/deeper/still",
    ):
        with pytest.raises(
            UsageError,
            match=(
                rf"--output {output}: is --images .*images/train or lies in it; the source is never"
                r" written to"
            ),
        ):
            plan(str(small_coco), str(output), overwrite=True)
    with pytest.raises(UsageError, match="is --annotations .*instances_train.json or lies in it"):
        plan(str(small_coco), str(small_coco / "annotations/instances_train.json"))
    assert {path: path.read_bytes() for path in small_coco.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "name",
    [
        "index.json",
        "quarantine.parquet",
        "report.html",
        "shard-00000-of-00001.parquet",
        ".progress/a.json",
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_annotations_with_the_name_of_a_file_of_the_set_are_not_overwritten(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    folder = Path(write_coco(tmp_path, {"a.jpg": jpeg(noise(20, 30))}))
    annotations = folder / "set" / name
    annotations.parent.mkdir(parents=True)
    (folder / "annotations/instances_train.json").rename(annotations)
    before = annotations.read_bytes()
    place = SourcePaths("train", "coco", str(annotations), str(folder / "images/train"))
    with pytest.raises(
        UsageError,
        match=(
            f"--annotations .*{name} has the name of a file that is written there; give another"
            " folder"
        ),
    ):
        plan_shards([place], output=str(folder / "set"), overwrite=overwrite)
    assert annotations.read_bytes() == before
    # Beside the annotations is no harm.
    plan_shards([place], output=str(folder / "set/shards"), overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_set_is_not_held_against_itself(
    small_coco: Path, finished: ShardSet, overwrite: bool
) -> None:
    index = (Path(finished.uri) / "index.json").read_bytes()
    with pytest.raises(UsageError, match=f"--against {finished.uri}: is the output itself"):
        plan(str(small_coco), finished.uri, against=(finished.uri,), overwrite=overwrite)
    assert (Path(finished.uri) / "index.json").read_bytes() == index


def test_a_file_is_no_folder_and_a_folder_no_file(small_coco: Path, tmp_path: Path) -> None:
    annotations, images = (
        str(small_coco / "annotations/instances_train.json"),
        str(small_coco / "images/train"),
    )
    a_picture = str(next(Path(images).iterdir()))
    for kind, labels, pictures, said in (
        (
            "coco",
            annotations,
            a_picture,
            f"--images {a_picture}: is a file, but the images are in a folder",
        ),
        (
            "coco",
            images,
            images,
            f"--annotations {images}: is a folder, but annotations of format coco are a COCO JSON file",
        ),
        ("voc", annotations, images, "is a file, but annotations of format voc are a folder"),
        ("yolo", annotations, images, "is a file, but annotations of format yolo are a folder"),
    ):
        with pytest.raises(UsageError, match=said):
            plan_shards([SourcePaths("a", kind, labels, pictures)], output=str(tmp_path / "out"))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="dangling is a link to .*nowhere, which does not exist"):
        plan(str(small_coco), str(tmp_path / "dangling/out"))


def test_a_picture_that_changed_after_an_interruption_is_read_again(
    tmp_path: Path, ray_cluster: str
) -> None:
    folder = write_coco(
        tmp_path / "source",
        {"a.bmp": jpeg(noise(20, 30), form="BMP"), "b.bmp": jpeg(noise(20, 30) // 2, form="BMP")},
    )
    changes = {"shard_bytes": 1, "overwrite": True}
    work = plan(folder, str(tmp_path / "out"), **changes)
    for job in jobs(work):
        run_job(job)
    other = jpeg(255 - noise(20, 30), form="BMP")
    files.write_bytes(f"{folder}/images/train/a.bmp", other)
    said: list[str] = []
    result = write(plan(folder, str(tmp_path / "out"), **changes), said.append)
    # The other one is kept: an interrupted --overwrite goes on as well.
    assert (
        said[0]
        == f"{tmp_path / 'out'}: 1 of 2 shards are there from a run that did not finish; reused"
    )
    rows = [
        row for n in range(2) for row in read.read_row_group(result.locate_group(n)).to_pylist()
    ]
    assert {row["file_name"]: row["image"] for row in rows}["a.bmp"] == other


def image_record(
    height: int | None, width: int | None, *boxes: tuple[float, float, float, float]
) -> ImageRecord:
    return ImageRecord(
        1,
        "a.jpg",
        height,
        width,
        tuple(Annotation(n, 0, box, False, None) for n, box in enumerate(boxes)),
    )


def ingest_one(
    folder: Path, data: bytes, record: ImageRecord
) -> tuple[Row, list[quarantine.Quarantined], dict[str, int]]:
    row, dropped, repairs = intake.ingest_image(record, data, max_pixels=10**6, category_ids=(1,))
    assert row is not None
    return row, dropped, dict(+repairs)


def test_the_pixels_are_trusted(tmp_path: Path) -> None:
    # The JSON says 10 x 10; the file is 20 x 30, so the first box is whole and only the second is
    # cut, at x = 30.
    row, dropped, repairs = ingest_one(
        tmp_path,
        jpeg(noise(20, 30)),
        image_record(10, 10, (5, 5, 25, 15), (20, 5, 40, 15), (31, 0, 40, 9)),
    )
    assert (row.height, row.width) == (20, 30)
    assert row.boxes_N4.tolist() == [[5, 5, 25, 15], [20, 5, 30, 15]]
    assert row.area_N == [200.0, 100.0]
    assert [record.where for record in dropped] == ["2 of a.jpg"]
    assert repairs == {
        "image sizes wrong in the annotations, taken from the pixels": 1,
        "boxes clipped to the picture": 1,
    }


@pytest.mark.parametrize("turn", range(2, 9))
def test_exif_where_the_json_fits_the_upright_picture(tmp_path: Path, turn: int) -> None:
    data = jpeg(noise(20, 30), turn=turn)
    upright = decode_image(data)
    height, width = (30, 20) if turn >= 5 else (20, 30)
    row, _, repairs = ingest_one(tmp_path, data, image_record(height, width, (1, 2, 11, 12)))
    assert (row.height, row.width) == (height, width) and row.boxes_N4.tolist() == [[1, 2, 11, 12]]
    assert intake.header(row.image) == (1, "JPEG")
    # JPEG at quality 95 of pure noise: a few grey levels off on average, and far from any turned
    # version.
    assert np.abs(decode_image(row.image).astype(int) - upright).mean() < 20
    assert repairs == {"images with an EXIF orientation, stored upright": 1}


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_exif_where_the_json_fits_the_picture_before_turning(tmp_path: Path, turn: int) -> None:
    # A white block on black, annotated where it lies in the file; after turning the box must still
    # hold it.
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[8:16, 16:48] = 255
    row, _, repairs = ingest_one(
        tmp_path, jpeg(pixels, turn=turn), image_record(40, 64, (16, 8, 48, 16))
    )
    assert (row.height, row.width) == (64, 40)
    x1, y1, x2, y2 = row.boxes_N4[0].astype(int)
    bright = decode_image(row.image)[:, :, 0] > 128
    # 8 * 32 = 256 bright pixels, all in the box, which has 256 itself.
    assert bright[y1:y2, x1:x2].sum() == bright.sum() == 256 == (x2 - x1) * (y2 - y1)
    assert (
        repairs["images whose boxes were annotated before the EXIF turn, turned with the picture"]
        == 1
    )


def test_a_failing_storage_is_not_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(uri: str) -> bytes:
        raise OSError("503 slow down")

    monkeypatch.setattr(files, "read_bytes", unavailable)
    with pytest.raises(
        PlainError, match="a.jpg: cannot be read .503 slow down.; run the command again"
    ):
        intake.read_picture(image_record(1, 1), str(tmp_path))


def test_a_worker_failure_is_one_plain_line(
    small_coco: Path, ray_cluster: str, tmp_path: Path
) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": jpeg(noise(20, 30))})
    work = plan(folder, str(tmp_path / "out"))
    (tmp_path / "out").mkdir(exist_ok=True)
    # A folder in the place of the shard: it cannot be replaced by a file.
    (tmp_path / "out" / work.job(0).name).mkdir()
    with pytest.raises(PlainError) as caught:
        write(work)
    assert "cannot be written" in str(caught.value) and "Traceback" not in str(caught.value)


def test_after_a_failure_the_shards_in_the_making_are_kept(
    ray_cluster: str, tmp_path: Path
) -> None:
    def job(number: int) -> ShardJob:
        image = ImageRecord(number, "a.jpg", 20, 30, ())
        return ShardJob(
            f"{number}.parquet",
            (image,),
            (str(tmp_path),),
            str(tmp_path / "out"),
            8,
            10**6,
            (1,),
            "f",
        )

    (tmp_path / "a.jpg").write_bytes(jpeg(noise(20, 30)))
    (tmp_path / "out" / "0.parquet").mkdir(parents=True)
    with pytest.raises(PlainError, match="cannot be written"):
        run_jobs(job, [0, 1, 2], total=3, say=print)
    assert find_report(job(1)) and find_report(job(2)), (
        "both were under way: there are two CPUs and one task waits"
    )


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


def test_jobs_are_made_when_a_task_is_free_for_them(
    small_coco: Path, ray_cluster: str, tmp_path: Path
) -> None:
    work = plan(str(small_coco), str(tmp_path), shard_bytes=1)
    made: list[int] = []

    def make(number: int) -> ShardJob:
        made.append(number)
        return work.job(number)

    def look(line: str) -> None:
        # 4 CPUs: at most 4 running and one waiting, besides those that are done.
        assert len(made) <= int(line.split()[0]) + 5

    assert len(run_jobs(make, range(24), total=24, say=look)) == len(made) == 24


def test_nodes_that_join_later_get_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    cpus, under_way = iter([1, 1, 3, 3, 3, 3]), []

    def wait(running: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        under_way.append(len(running))
        return running[:1], running[1:]

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": next(cpus)})
    monkeypatch.setattr(
        ray,
        "remote",
        lambda **options: lambda function: SimpleNamespace(remote=lambda job: f"report {job}"),
    )
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    found = run_jobs(str, range(6), total=6, say=quiet)
    assert found == {number: f"report {number}" for number in range(6)}
    # One more than there are CPUs: two with one, four with three, until none waits.
    assert under_way == [2, 2, 4, 3, 2, 1]


def test_no_larger_picture_is_stored_than_training_reads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ("--annotations", "a.json", "--images", "i", "--output", "o")
    assert run_prepare(*places, "--max_pixels", str(MAX_PIXELS + 1)) == 2
    assert (
        f"max_pixels '{MAX_PIXELS + 1}': must be less than or equal to {MAX_PIXELS}"
        in capsys.readouterr().err
    )


def test_too_many_bad_annotations_are_refused(tmp_path: Path, ray_cluster: str) -> None:
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
        write(plan(folder, str(tmp_path / "out"), max_quarantined_annotations=0.25))
    with pytest.raises(DataError, match="1 of 4 annotations had to be left out"):
        plan(folder, str(tmp_path / "out"), max_quarantined_annotations=0.0)
    assert (
        write(plan(folder, str(tmp_path / "out"), max_quarantined_annotations=0.5)).counts.boxes
        == 2
    )


@pytest.fixture(scope="module")
def train_set(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Two pictures, to be looked for in other sets."""
    folder = tmp_path_factory.mktemp("train")
    pictures = {"x.jpg": jpeg(noise(20, 30)), "y.jpg": jpeg(noise(20, 31), turn=6)}
    return write(plan(write_coco(folder / "coco", pictures), str(folder / "out")))


LEAKY = {
    "new.jpg": jpeg(noise(21, 30)),
    "leak.jpg": jpeg(noise(20, 30)),
    "turned.jpg": jpeg(noise(20, 31), turn=6),
    "new again.jpg": jpeg(noise(21, 30)),
}


def test_pictures_of_other_sets_are_named_and_stay(train_set: ShardSet, tmp_path: Path) -> None:
    work = plan(
        write_coco(tmp_path / "coco", LEAKY), str(tmp_path / "out"), against=(train_set.uri,)
    )
    prepared = write_shards(work, say=quiet)
    lines = told(prepared)
    assert (
        f"leak        2 x a picture that is also in {train_set.uri} (such as leak.jpg = x.jpg)"
        in lines
    )
    assert "duplicate   1 x the picture of another image (such as new again.jpg = new.jpg)" in lines
    assert prepared.index.counts.images == 4 and prepared.quarantined == []
    # A finished set says the same again, and is not the one of a preparation without `against`.
    again = plan(str(tmp_path / "coco"), str(tmp_path / "out"), against=(train_set.uri,))
    assert told(write_shards(again, say=quiet)) == lines
    with pytest.raises(UsageError, match="another source or other options"):
        plan(str(tmp_path / "coco"), str(tmp_path / "out"))


def test_duplicates_are_dropped_and_counted_apart(train_set: ShardSet, tmp_path: Path) -> None:
    options = {"against": (train_set.uri,), "shard_bytes": 1, "max_quarantined": 0.0}
    folder = write_coco(tmp_path / "coco", LEAKY)
    work = plan(folder, str(tmp_path / "out"), drop_duplicates=True, **options)
    said: list[str] = []
    prepared = write_shards(work, say=said.append)
    assert "3 of 4 shards are written again, for duplicates" in said
    assert prepared.shard_set is not None and read.read_annotations(prepared.shard_set)[
        "file_name"
    ].to_pylist() == ["new.jpg"]
    verify.verify_shard_set(prepared.shard_set)
    whys = {
        record.where: (record.what, record.why)
        for record in quarantine.read_quarantine(str(tmp_path / "out"))
    }
    there = ("duplicate", f"the same picture is in {train_set.uri}")
    assert whys == {
        "leak.jpg": there,
        "turned.jpg": there,
        "new again.jpg": ("duplicate", "the same picture comes twice"),
    }
    counts = prepared.index.counts
    assert (
        counts.images,
        counts.dropped_images,
        counts.quarantined_images,
        counts.listed_images,
    ) == (1, 3, 0, 4)
    assert (counts.boxes, counts.lost_annotations, counts.listed_annotations) == (1, 3, 4)
    assert len(prepared.shard_set.shards) == 1

    # The same from the notes of an interrupted run of either kind.
    for former in (True, False):
        output = str(tmp_path / f"again-{former}")
        first = plan(folder, output, drop_duplicates=former, **options)
        for number in range(len(first.cuts)):
            run_job(first.job(number))
        drops = write_shards(plan(folder, output, drop_duplicates=True, **options), say=quiet)
        assert drops.shard_set is not None and drops.shard_set.digest == prepared.shard_set.digest


def test_dropping_everything_is_refused(train_set: ShardSet, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", {"leak.jpg": jpeg(noise(20, 30))})
    with pytest.raises(DataError, match="none of the 1 images is left: all are in"):
        write(plan(folder, str(tmp_path / "out"), drop_duplicates=True, against=(train_set.uri,)))
    with pytest.raises(UsageError, match="not a shard set"):
        plan(folder, str(tmp_path / "out"), against=(str(tmp_path),))


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
        tmp_path / "first", {"a.jpg": jpeg(noise(20, 30)), "b.jpg": jpeg(noise(20, 32))}
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
        ([{**good, "format": "xml"}], (), "sources.format 'xml': must be 'coco', 'voc' or 'yolo'"),
        ([{"name": "one"}], (), "sources.annotations is required"),
        ([{**good, "labels": "x"}], (), "sources.labels is not an option"),
        ([], (), "annotations and images must both be given, or sources for several"),
    ):
        assert (
            run_prepare("--sources", json.dumps(sources), "--output", str(tmp_path / "out"), *flags)
            == 2
        )
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


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
