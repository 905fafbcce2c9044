from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster import coco, ingest, intake, shards, storage
from cluster.errors import DataError, PlainError, UsageError
from detector.image import decode_image
from pipelines.command_line import run_verb
from pipelines.prepare import PrepareConfig, main

ROOT = Path(__file__).parent.parent
OPTIONS: dict[str, Any] = {"seed": 0, "shard_bytes": 100_000, "row_group_rows": 2, "max_quarantined": 0.05, "overwrite": False}


def quiet(line: str) -> None:
    return None


def plan(folder: str, output: str, **changes: Any) -> ingest.Plan:
    places = {"annotations": f"{folder}/annotations/instances_train.json", "images": f"{folder}/images/train", "output": output}
    return ingest.plan_shards(**{**OPTIONS, **places, **changes})


def jpeg(pixels: np.ndarray, *, turn: int | None = None, form: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    exif = Image.Exif()
    if turn is not None:
        exif[intake.ORIENTATION] = turn
    Image.fromarray(pixels).save(sink, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    return sink.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def write_coco(folder: Path, files: dict[str, bytes | None], *, size: tuple[int, int] = (20, 30)) -> str:
    """Every name an image with one box; where the bytes are None there is no file."""
    images = [{"id": n, "file_name": name, "height": size[0], "width": size[1]} for n, name in enumerate(files)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [2, 3, 10, 10], "area": 100, "iscrowd": 0} for n in range(len(files))]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    storage.write_json(str(folder / "annotations/instances_train.json"), content)
    (folder / "images/train").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if data is not None:
            storage.write_bytes(str(folder / "images/train" / name), data)
    return str(folder)


@pytest.fixture(scope="module")
def finished(small_coco: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> shards.ShardSet:
    """The small set, prepared without disturbance."""
    return ingest.write_shards(plan(str(small_coco), str(tmp_path_factory.mktemp("finished"))), say=quiet)


def test_every_image_once_with_its_boxes(small_coco: Path, finished: shards.ShardSet) -> None:
    content = json.loads((small_coco / "annotations/instances_train.json").read_text())
    table = shards.read_annotations(finished).to_pylist()
    assert sorted(row["image_id"] for row in table) == [image["id"] for image in content["images"]]
    assert [row["image_id"] for row in table] != sorted(row["image_id"] for row in table)
    labels = {1: 0, 3: 1, 7: 2, 18: 3, 44: 4}
    for row in table:
        own = [one for one in content["annotations"] if one["image_id"] == row["image_id"]]
        corners = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in own)]
        assert row["boxes"] == corners and row["labels"] == [labels[one["category_id"]] for one in own]
        assert row["crowd"] == [bool(one["iscrowd"]) for one in own] and row["area"] == [one["area"] for one in own]
    assert finished.counts == {
        "images": 24,
        "boxes": len(content["annotations"]),
        "crowds": sum(one["iscrowd"] for one in content["annotations"]),
        "empty_images": 24 - len({one["image_id"] for one in content["annotations"]}),
        "quarantined": 0,
        "quarantined_images": 0,
    }


def test_stored_images_are_the_source_files(small_coco: Path, finished: shards.ShardSet) -> None:
    for group in range(len(finished.rows_per_group)):
        for row in shards.read_row_group(finished.locate_group(group)).select(["file_name", "image"]).to_pylist():
            assert row["image"] == (small_coco / "images/train" / row["file_name"]).read_bytes()


def test_the_folder_holds_the_set_and_nothing_else(finished: shards.ShardSet) -> None:
    assert len(finished.shards) >= 4
    wanted = ["index.json", "quarantine.parquet", *(shard.name for shard in finished.shards)]
    assert sorted(os.listdir(finished.uri)) == sorted(wanted)
    assert all(group.rows == 2 for shard in finished.shards for group in shard.row_groups[:-1])
    shards.verify_shard_set(finished)


def test_a_bucket_gives_the_digest_of_a_folder(small_coco: Path, finished: shards.ShardSet, bucket: str) -> None:
    storage.upload_folder(str(small_coco), f"{bucket}/coco")
    result = ingest.write_shards(plan(f"{bucket}/coco", f"{bucket}/shards"), say=quiet)
    assert result.digest == finished.digest and result.counts == finished.counts
    assert shards.open_shard_set(f"{bucket}/shards") == result
    shards.verify_shard_set(result)


def test_the_order_of_the_work_does_not_matter(small_coco: Path, finished: shards.ShardSet, tmp_path: Path) -> None:
    work = plan(str(small_coco), str(tmp_path))
    for job in reversed(work.jobs):
        ingest.run_job(job)
    said: list[str] = []
    result = ingest.write_shards(work, say=said.append)
    assert result.digest == finished.digest
    assert said == [f"{tmp_path}: {len(work.jobs)} of {len(work.jobs)} shards are there from a run that did not finish; reused"]


def test_the_seed_gives_the_order(small_coco: Path, tmp_path: Path) -> None:
    def order(seed: int) -> list[int]:
        return [image.image_id for job in plan(str(small_coco), str(tmp_path), seed=seed).jobs for image in job.images]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


def test_cutting_by_size() -> None:
    images = [coco.ImageRecord(n, str(n), None, None, ()) for n in range(6)]
    cuts = ingest.cut_shards(images, [40, 40, 40, 40, 40, 40], seed=0, shard_bytes=100)
    assert [len(cut) for cut in cuts] == [2, 2, 2]
    # One file larger than a shard stands alone.
    assert [len(cut) for cut in ingest.cut_shards(images[:3], [500, 500, 500], seed=0, shard_bytes=100)] == [1, 1, 1]
    assert ingest.cut_shards([], [], seed=0, shard_bytes=100) == []


class Stop(Exception):
    """Stands for whatever ends a driver."""


def test_an_interrupted_run_is_continued(small_coco: Path, finished: shards.ShardSet, tmp_path: Path) -> None:
    def stop_at_the_second(line: str) -> None:
        if line.startswith("2 of"):
            raise Stop

    with pytest.raises(Stop):
        ingest.write_shards(plan(str(small_coco), str(tmp_path)), say=stop_at_the_second)
    with pytest.raises(UsageError, match="not a shard set"):
        shards.open_shard_set(str(tmp_path))
    said: list[str] = []
    result = ingest.write_shards(plan(str(small_coco), str(tmp_path)), say=said.append)
    assert "shards are there from a run that did not finish; reused" in said[0]
    assert result.digest == finished.digest
    # Tasks of the interrupted run go on here, where its driver still lives, and may be about to replace a shard by the same one.
    assert sorted(name for name in os.listdir(tmp_path) if not name.startswith(".partial-")) == sorted(os.listdir(finished.uri))


def test_a_killed_driver_leaves_no_set_and_a_second_run_finishes_it(ray_cluster: str, tmp_path: Path) -> None:
    # Noise compresses badly: each file takes more than half a MiB, so each shard of at most one MiB holds one.
    data = jpeg(noise(640, 800))
    assert 2**19 < len(data) < 2**20
    folder = write_coco(tmp_path / "coco", {f"{number:02d}.jpg": data for number in range(30)}, size=(640, 800))
    command = [
        *(sys.executable, "-m", "pipelines.prepare", "--ray.address", ray_cluster, "--shard_size_mib", "1", "--row_group_rows", "2"),
        *("--annotations", f"{folder}/annotations/instances_train.json", "--images", f"{folder}/images/train"),
        *("--output", str(tmp_path / "out")),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        seen = next((line for line in driver.stdout if "of 30 shards" in line), "")
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL and seen
    assert not (tmp_path / "out/index.json").exists()

    said: list[str] = []
    result = ingest.write_shards(plan(folder, str(tmp_path / "out"), shard_bytes=2**20), say=said.append)
    assert "of 30 shards are there from a run that did not finish; reused" in said[0]
    undisturbed = ingest.write_shards(plan(folder, str(tmp_path / "other"), shard_bytes=2**20), say=quiet)
    assert result.num_rows == 30 and result.digest == undisturbed.digest
    shards.verify_shard_set(result)


def test_a_note_without_its_shard_is_not_believed(small_coco: Path, tmp_path: Path) -> None:
    work = plan(str(small_coco), str(tmp_path))
    first, second = work.jobs[:2]
    ingest.run_job(first)
    ingest.run_job(second)
    assert ingest.find_report(first) is not None
    os.truncate(tmp_path / first.name, 100)
    assert ingest.find_report(first) is None
    other = plan(str(small_coco), str(tmp_path), row_group_rows=3)
    assert ingest.find_report(second) is not None and ingest.find_report(other.jobs[1]) is None


def test_a_finished_set_is_reused_or_refused_or_replaced(small_coco: Path, ray_cluster: str, tmp_path: Path) -> None:
    first = ingest.write_shards(plan(str(small_coco), str(tmp_path)), say=quiet)
    said: list[str] = []
    again = ingest.write_shards(plan(str(small_coco), str(tmp_path)), say=said.append)
    assert again == first and said == [f"{tmp_path}: the shard set is already there and fits source and options; reused"]
    with pytest.raises(UsageError, match="holds a shard set of another source or other options; give another folder or say --overwrite true"):
        plan(str(small_coco), str(tmp_path), seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    replaced = ingest.write_shards(plan(str(small_coco), str(tmp_path), shard_bytes=10**9, overwrite=True), say=quiet)
    assert sorted(os.listdir(tmp_path)) == ["index.json", "notes.txt", "quarantine.parquet", "shard-00000-of-00001.parquet"]
    assert replaced.num_rows == first.num_rows and replaced.digest != first.digest


def test_bad_images_cost_themselves(tmp_path: Path, ray_cluster: str) -> None:
    good = jpeg(noise(20, 30))
    grey, cmyk = io.BytesIO(), io.BytesIO()
    Image.new("L", (30, 20)).save(grey, "JPEG")
    Image.new("CMYK", (30, 20)).save(cmyk, "JPEG")
    files = {
        "good.jpg": good,
        "sub/png.jpg": jpeg(noise(20, 30), form="PNG"),
        "grey.jpg": grey.getvalue(),
        "cmyk.jpg": cmyk.getvalue(),
        "truncated.jpg": good[: len(good) // 2],
        "empty.jpg": b"",
        "text.jpg": b"not an image at all",
        "missing.jpg": None,
    }
    folder = write_coco(tmp_path / "coco", files)
    before = {str(path): path.read_bytes() for path in (tmp_path / "coco").rglob("*") if path.is_file()}
    result = ingest.write_shards(plan(folder, str(tmp_path / "out"), max_quarantined=0.5), say=quiet)
    assert sorted(shards.read_annotations(result)["file_name"].to_pylist()) == ["cmyk.jpg", "good.jpg", "grey.jpg", "sub/png.jpg"]
    whys = {record["where"]: record["why"] for record in shards.read_quarantine(result.uri)}
    assert set(whys) == {"truncated.jpg", "empty.jpg", "text.jpg", "missing.jpg"}
    assert "truncated" in whys["truncated.jpg"] and "0 bytes" in whys["empty.jpg"] and "cannot identify" in whys["text.jpg"]
    assert whys["missing.jpg"] == "the file is not in the images folder"
    assert result.counts["images"] == 4 and result.counts["quarantined_images"] == 4
    assert {str(path): path.read_bytes() for path in (tmp_path / "coco").rglob("*") if path.is_file()} == before


def test_too_many_bad_images_are_refused(tmp_path: Path, ray_cluster: str) -> None:
    good = jpeg(noise(20, 30))
    folder = write_coco(tmp_path / "coco", {"a.jpg": good, "b.jpg": good, "c.jpg": b"", "d.jpg": b"text"})
    with pytest.raises(DataError, match=r"2 of 4 images had to be left out, --max_quarantined 0.25 allows 1: 1 x .*see .*quarantine.parquet"):
        ingest.write_shards(plan(folder, str(tmp_path / "out"), max_quarantined=0.25), say=quiet)
    assert len(shards.read_quarantine(str(tmp_path / "out"))) == 2
    assert not (tmp_path / "out/index.json").exists()
    # Half is allowed now, and the work already done counts.
    assert ingest.write_shards(plan(folder, str(tmp_path / "out"), max_quarantined=0.5), say=quiet).num_rows == 2


def test_missing_images_are_refused_before_any_work(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": None, "b.jpg": None})
    with pytest.raises(DataError, match=r"2 of 2 images had to be left out, none is left: 2 x the file is not in the images folder, such as a.jpg"):
        plan(folder, str(tmp_path / "out"), max_quarantined=1.0)
    assert len(shards.read_quarantine(str(tmp_path / "out"))) == 2


def test_the_source_is_not_a_target(small_coco: Path) -> None:
    with pytest.raises(UsageError, match="is the images folder itself"):
        plan(str(small_coco), str(small_coco / "images/train"))


def image_record(height: int | None, width: int | None, *boxes: tuple[float, float, float, float]) -> coco.ImageRecord:
    return coco.ImageRecord(1, "a.jpg", height, width, tuple(coco.Annotation(n, 0, box, False, None) for n, box in enumerate(boxes)))


def ingest_one(folder: Path, data: bytes, record: coco.ImageRecord) -> tuple[shards.Row, list[coco.Quarantined], dict[str, int]]:
    (folder / "a.jpg").write_bytes(data)
    row, dropped, repairs = intake.ingest_image(record, str(folder))
    assert row is not None
    return row, dropped, dict(+repairs)


def test_the_pixels_are_trusted(tmp_path: Path) -> None:
    # The JSON says 10 x 10; the file is 20 x 30, so the first box is whole and only the second is cut, at x = 30.
    row, dropped, repairs = ingest_one(tmp_path, jpeg(noise(20, 30)), image_record(10, 10, (5, 5, 25, 15), (20, 5, 40, 15), (31, 0, 40, 9)))
    assert (row.height, row.width) == (20, 30)
    assert row.boxes_N4.tolist() == [[5, 5, 25, 15], [20, 5, 30, 15]]
    assert row.area_N == [200.0, 100.0]
    assert [record.where for record in dropped] == ["2"]
    assert repairs == {"image sizes wrong in the JSON, taken from the pixels": 1, "boxes clipped to the picture": 1}


@pytest.mark.parametrize("turn", range(2, 9))
def test_exif_where_the_json_fits_the_upright_picture(tmp_path: Path, turn: int) -> None:
    data = jpeg(noise(20, 30), turn=turn)
    upright = decode_image(data)
    height, width = (30, 20) if turn >= 5 else (20, 30)
    row, _, repairs = ingest_one(tmp_path, data, image_record(height, width, (1, 2, 11, 12)))
    assert (row.height, row.width) == (height, width) and row.boxes_N4.tolist() == [[1, 2, 11, 12]]
    assert intake.orientation(row.image) == 1
    # JPEG at quality 95 of pure noise: a few grey levels off on average, and far from any turned version.
    assert np.abs(decode_image(row.image).astype(int) - upright).mean() < 20
    assert repairs == {"images with an EXIF orientation, stored upright": 1}


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_exif_where_the_json_fits_the_picture_before_turning(tmp_path: Path, turn: int) -> None:
    # A white block on black, annotated where it lies in the file; after turning the box must still hold it.
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[8:16, 16:48] = 255
    row, _, repairs = ingest_one(tmp_path, jpeg(pixels, turn=turn), image_record(40, 64, (16, 8, 48, 16)))
    assert (row.height, row.width) == (64, 40)
    x1, y1, x2, y2 = row.boxes_N4[0].astype(int)
    bright = decode_image(row.image)[:, :, 0] > 128
    # 8 * 32 = 256 bright pixels, all in the box, which has 256 itself.
    assert bright[y1:y2, x1:x2].sum() == bright.sum() == 256 == (x2 - x1) * (y2 - y1)
    assert repairs["images whose boxes were annotated before the EXIF turn, turned with the picture"] == 1


def test_a_failing_storage_is_not_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(uri: str) -> bytes:
        raise OSError("503 slow down")

    monkeypatch.setattr(storage, "read_bytes", unavailable)
    with pytest.raises(PlainError, match="a.jpg: cannot be read .503 slow down.; run the command again"):
        intake.ingest_image(image_record(1, 1), str(tmp_path))


def test_a_worker_failure_is_one_plain_line(small_coco: Path, ray_cluster: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": jpeg(noise(20, 30))})
    work = plan(folder, str(tmp_path / "out"))
    (tmp_path / "out").mkdir(exist_ok=True)
    # A folder in the place of the shard: it cannot be replaced by a file.
    (tmp_path / "out" / work.jobs[0].name).mkdir()
    with pytest.raises(PlainError) as caught:
        ingest.write_shards(work, say=quiet)
    assert "cannot be written" in str(caught.value) and "Traceback" not in str(caught.value)


def run_prepare(*flags: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run_verb(PrepareConfig, main, description="x", argv=list(flags))
    return int(caught.value.code or 0)


def test_the_verb_reports(small_coco: Path, ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{n}.jpg": jpeg(noise(20, 30)) for n in range(3)} | {"bad.jpg": b"text"}
    folder = write_coco(tmp_path / "coco", files)
    flags = ("--annotations", f"{folder}/annotations/instances_train.json", "--images", f"{folder}/images/train", "--output", str(tmp_path / "out"))
    assert run_prepare(*flags, "--max_quarantined", "0.3") == 0
    out = capsys.readouterr().out
    assert f"shards      {tmp_path}/out   1 shards" in out
    assert "images      3, of which 0 without objects" in out
    assert "left out    1 x it cannot be decoded: cannot identify image file (such as bad.jpg)" in out
    assert shards.open_shard_set(str(tmp_path / "out")).digest in out
    assert run_prepare(*flags, "--seed", "1") == 2
    assert "--overwrite" in capsys.readouterr().err


def test_exit_codes_of_bad_input(small_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, output = ("--images", str(small_coco / "images/train")), ("--output", str(tmp_path / "out"))
    (tmp_path / "malformed.json").write_text("{")
    (tmp_path / "zero.json").write_text('{"images": [], "annotations": [], "categories": []}')
    good = str(small_coco / "annotations/instances_train.json")
    for flags, code, message in (
        (("--annotations", str(tmp_path / "none.json"), *images, *output), 2, "none.json: there is no such file"),
        (("--annotations", str(tmp_path / "malformed.json"), *images, *output), 3, "line 1, column 2"),
        (("--annotations", str(tmp_path / "zero.json"), *images, *output), 3, "list of images is empty"),
        (("--annotations", good, "--images", str(tmp_path / "none"), *output), 2, "none: there is no such file or folder"),
        (("--annotations", good, "--images", str(tmp_path), *output), 3, "24 of 24 images had to be left out"),
        (("--annotations", good, *images, "--output", str(tmp_path / "zero.json")), 2, "is a file, a folder is needed"),
        (("--annotations", good, *images, *output, "--row_group_rows", "0"), 2, "row_group_rows"),
    ):
        assert run_prepare(*flags) == code
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("error: ")
