"""A part has one row for each of its images: a bad image is a row with its reason, an outage is an
error and no row.
"""

from __future__ import annotations

import io
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import PlainError, UsageError
from cluster.prediction import part, read_image, trial_decode
from cluster.prediction import plan as plans
from cluster.prediction.image_list import LISTED
from cluster.prediction.part import PartJob, predict_part
from cluster.storage import files, s3
from detector import image as images
from detector.choices import ViewSettings
from tests.support.faulty_s3 import FaultyS3, Rule
from tests.support.parquet_sets import row as parquet_row
from tests.support.parquet_sets import write as write_parquet
from tests.support.predicting import Reds, red_picture, write_pictures

BOX = (200, 120, 560, 480)
"""XYXY px of what is red in the pictures of 600 x 800 (height x width) px."""


def picture(kind: str = "JPEG", *, orientation: int = 1) -> bytes:
    upright = np.zeros((600, 800, 3), np.uint8)
    upright[..., 2] = 200
    upright[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (255, 0, 0)
    # As a camera stores it so that the viewer's turn makes it upright.
    stored = {
        1: upright,
        3: upright[::-1, ::-1],
        6: np.rot90(upright, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(sink, kind, exif=exif)
    return sink.getvalue()


def predicted(output: str, uris: list[str], **changes: Any) -> list[dict[str, Any]]:
    """The rows of a part of these images."""
    rows = [{"uri": uri, "image_id": number} for number, uri in enumerate(uris)]
    plans.write_part(output, 0, pa.Table.from_pylist(rows, schema=LISTED))
    job = PartJob(output, 0, "claim", "models:/cells/1", **{"max_pixels": 10**6, **changes})
    report = predict_part(job, Reds(), ["red"], threads=2)
    with files.open_input(f"{output}/parts/part-000000.parquet") as file:
        table = pq.read_table(file)
    found = table.to_pylist()
    assert [row["uri"] for row in found] == uris
    failed = sum(row["status"] == "error" for row in found)
    assert (report.ok, report.failed) == (len(uris) - failed, failed)
    origin = part.made_of("claim", plans.digest_of(plans.read_part(output, 0)))
    assert table.schema.metadata[part.MADE_OF].decode() == origin
    return found


def test_every_row_stays_in_place_and_a_bad_image_has_a_reason(tmp_path: Path) -> None:
    whole = picture()
    sink = io.BytesIO()
    Image.new("RGB", (1100, 1000)).save(sink, "PNG")
    contents = {
        "0.jpg": (whole, None, None),
        "1.jpg": (whole[:-300], "undecodable", "truncated"),
        "2.jpg": (b"", "empty", "the file is empty"),
        "3.png": (picture("PNG"), None, None),
        "4.jpg": (b"GIF, or not", "not_an_image", "cannot identify"),
        "5.jpg": (b"<!DOCTYPE html><p>Not found", "not_an_image", "a web page"),
        "6.jpg": (whole[:40], "undecodable", "Truncated"),
        "7.png": (sink.getvalue(), "too_many_pixels", "1000000 allowed (1100x1000)"),
        "8.jpg": (whole, None, None),
    }
    for name, (data, _, _) in contents.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("gone")
    others = {
        "gone.jpg": ("missing", "there is no such file"),
        "folder.jpg": ("missing", "cannot be read: "),
        "link.jpg": ("missing", "a link that leads nowhere"),
        "pipe.jpg": ("undecodable", "neither a file nor a folder"),
    }
    rows = predicted(f"{tmp_path}/out", [f"{tmp_path}/{name}" for name in (*contents, *others)])
    wanted = [*((why, said) for _, why, said in contents.values()), *others.values()]
    for row, (why, said) in zip(rows, wanted, strict=True):
        assert row["reason"] == why, row
        if why is None:
            assert (row["status"], row["error"], row["height"], row["width"]) == (
                *("ok", None),
                *(600, 800),
            )
            assert row["names"] == ["red"] and row["model_version"] == "models:/cells/1"
            np.testing.assert_allclose(row["boxes"], [BOX], atol=800 / 128)
        else:
            assert (row["status"], row["boxes"], row["height"]) == ("error", [], None)
            assert said in row["error"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_detections_of_a_rotated_photo_are_in_its_upright_frame(
    tmp_path: Path, orientation: int
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(orientation=orientation))
    (row,) = predicted(f"{tmp_path}/out", [f"{tmp_path}/a.jpg"])
    assert (row["status"], row["height"], row["width"]) == ("ok", 600, 800)
    np.testing.assert_allclose(row["boxes"], [BOX], atol=800 / 128)


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_image, "MAX_BYTES", 1 << 20)
    with open(tmp_path / "a.tif", "wb") as file:
        file.truncate(3 << 20)
    (row,) = predicted(f"{tmp_path}/out", [f"{tmp_path}/a.tif"])
    assert (row["reason"], row["error"]) == ("too_large", "the file has 3 MiB, 1 are allowed")


def test_pictures_inside_parquet_files_are_read_like_files(tmp_path: Path) -> None:
    contents = [red_picture(number) for number in range(40)]
    uri = write_parquet(
        tmp_path / "a.parquet", [parquet_row(i, data=data) for i, data in enumerate(contents)]
    )
    (tmp_path / "a.png").write_bytes(contents[0])
    inside = [f"{uri}#{number}" for number in range(40)]
    uris = [*inside[:3], f"{tmp_path}/a.png", *inside[3:], f"{uri}#40", f"{tmp_path}/b.parquet#0"]
    rows = predicted(f"{tmp_path}/out", uris)
    assert [row["reason"] for row in rows] == [None] * 41 + ["missing", "missing"]
    left = [row["boxes"][0][0] for row in rows[:41]]
    # The left border of the red area is at 2 * (number modulo 30) px.
    assert left == [0, 2, 4, 0, *(2 * (number % 30) for number in range(3, 40))]


def test_groups_keep_the_order_and_hold_rows_of_one_file() -> None:
    uris = ["/a.parquet#0", "/a.parquet#1", "/b.parquet#0", "/c.jpg", "/d.jpg", "/a.parquet#2"]
    groups = list(read_image.grouped(uris))
    assert [len(group) for group in groups] == [2, 1, 1, 1, 1]
    assert [item for group in groups for item in group] == list(enumerate(uris))
    assert [len(group) for group in read_image.grouped([f"/a.parquet#{n}" for n in range(70)])] == [
        32,
        32,
        6,
    ]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on a storage within seconds."""
    monkeypatch.setattr(s3, "PATIENT", s3.IMPATIENT)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("answer", method="GET", path="b.png", times=1e9, status=503, code="SlowDown"),
        Rule("answer", method="GET", path="b.png", times=1e9, status=403, code="AccessDenied"),
        Rule("answer", path="b.png", times=1e9, status=400, code="ExpiredToken"),
        Rule("reset", method="GET", path="b.png", times=1e9),
    ],
    ids=lambda rule: f"{rule.fault} {rule.status if rule.fault == 'answer' else ''}",
)
def test_an_outage_is_no_bad_image_and_nothing_is_written(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Rule, hasty: None
) -> None:
    for name in ("a.png", "b.png"):
        files.write_bytes(f"{bucket}/{name}", red_picture())
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(PlainError, match="b.png: cannot be read: ") as raised:
            predicted(f"{tmp_path}/out", [f"{bucket}/a.png", f"{bucket}/b.png"])
    assert raised.value.exit_code == 1 and rule.fired > 0
    assert not (tmp_path / "out/parts").exists()


def test_a_short_outage_costs_nothing(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_bytes(f"{bucket}/a.png", red_picture())
    rule = Rule("answer", method="GET", path="a.png", times=1)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        (row,) = predicted(f"{tmp_path}/out", [f"{bucket}/a.png"])
    assert row["status"] == "ok" and rule.fired == 1


def test_files_that_only_the_driver_sees_are_refused(tmp_path: Path) -> None:
    rows = [{"uri": f"{tmp_path}/{n}.jpg", "size": 9, "changed": 9} for n in range(3)]
    job = PartJob(f"{tmp_path}/out", 0, "claim", "", 10**6)
    with pytest.raises(UsageError, match="part-000000.parquet: is not there; if workers run on"):
        predict_part(job, Reds(), ["red"])
    plans.write_part(job.output, 0, pa.Table.from_pylist(rows, schema=LISTED))
    with pytest.raises(UsageError, match="0.jpg and 2 more: are not on node .*--images must name"):
        predict_part(job, Reds(), ["red"])
    # One that is there: the others have been deleted meanwhile.
    (tmp_path / "1.jpg").write_bytes(red_picture())
    assert predict_part(job, Reds(), ["red"]).failed == 2


def test_an_object_that_is_missing_is_a_row(bucket: str, tmp_path: Path) -> None:
    (row,) = predicted(f"{tmp_path}/out", [f"{bucket}/a.png"])
    assert row["reason"] == "missing" and "a.png" in row["error"]


def test_of_two_workers_the_first_one_writes_the_part(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(red_picture())
    for output in (f"{tmp_path}/out", f"{bucket}/out"):
        first = predicted(output, [f"{tmp_path}/a.png"])
        (tmp_path / "a.png").write_bytes(b"changed")
        predict_part(PartJob(output, 0, "claim", "models:/cells/1", 10**6), Reds(), ["red"])
        (tmp_path / "a.png").write_bytes(red_picture())
        with files.open_input(f"{output}/parts/part-000000.parquet") as file:
            assert pq.read_table(file).to_pylist() == first


def test_an_image_that_kills_its_decoder_is_a_row_of_an_isolated_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child ends as by a segmentation fault, hangs, or fails, at one image of three each."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys, time\n"
        "import detector.image as image\n"
        "decode = image.decode_image\n"
        "def decode_image(data, **options):\n"
        "    if data.startswith(b'segfault'):\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if data.startswith(b'hang'):\n"
        "        time.sleep(600)\n"
        "    if data.startswith(b'memory'):\n"
        "        raise MemoryError\n"
        "    return decode(data, **options)\n"
        "image.decode_image = decode_image\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trial_decode, "SECONDS", 5.0)
    starts = (b"", b"segfault", b"", b"memory", b"hang", b"")
    uris = [f"{tmp_path}/{number}.png" for number in range(len(starts))]
    for uri, start in zip(uris, starts, strict=True):
        Path(uri).write_bytes(start + red_picture())
    rows = predicted(f"{tmp_path}/out", uris, isolated=True)
    killed = "kills_its_decoder"
    assert [row["reason"] for row in rows] == [None, killed, None, killed, killed, None]
    assert "ends with signal 11" in rows[1]["error"] and "exit code 1" in rows[3]["error"]
    assert "had not ended after 5 s" in rows[4]["error"]
    assert rows[5]["boxes"] == [[0.0, 20.0, 100.0, 60.0]]


def test_a_child_decodes_one_image_after_another_and_refuses_none(tmp_path: Path) -> None:
    with trial_decode.TrialDecoder(max_pixels=images.MAX_PIXELS) as trial:
        assert trial.try_image(red_picture()) is None
        child = trial._child
        assert trial.try_image(b"no image") is None and trial.try_image(b"") is None
        assert trial._child is child
    assert child is not None and child.poll() is not None


def test_tiles_of_a_large_picture_find_what_the_whole_picture_loses(tmp_path: Path) -> None:
    """A red square of 12 px in 1600 x 1200 is less than one px of the canvas."""
    pixels = np.zeros((1200, 1600, 3), np.uint8)
    pixels[..., 2] = 200
    pixels[700:712, 1300:1312] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    (tmp_path / "small.jpg").write_bytes(picture())
    uris = [f"{tmp_path}/large.png", f"{tmp_path}/small.jpg"]
    plain = predicted(f"{tmp_path}/plain", uris, max_pixels=10**7)
    tiled = predicted(
        f"{tmp_path}/tiled", uris, max_pixels=10**7, views=ViewSettings(tile=128, overlap=0.2)
    )
    assert [(row["height"], row["width"]) for row in tiled] == [(1200, 1600), (600, 800)]
    assert any(np.allclose(box, [1300, 700, 1312, 712], atol=2) for box in tiled[0]["boxes"])
    assert not any(np.allclose(box, [1300, 700, 1312, 712], atol=2) for box in plain[0]["boxes"])


def test_a_part_that_waits_for_the_network_decodes_meanwhile(tmp_path: Path) -> None:
    decoded: queue.Queue[int] = queue.Queue()
    seen: list[int] = []

    class Noting(Reds):
        def view_samples(self, image: Any, image_id: int, settings: Any = None) -> Any:
            decoded.put(image_id)
            return super().view_samples(image, image_id, settings)

        def detect(self, batch: Any, original_sizes: Any, *, flip: bool = False) -> Any:
            seen.append(len(original_sizes))
            return super().detect(batch, original_sizes, flip=flip)

    rows = [{"uri": f"{tmp_path}/{name}"} for name in write_pictures(tmp_path, 10)]
    plans.write_part(f"{tmp_path}/out", 0, pa.Table.from_pylist(rows, schema=LISTED))
    job, network = PartJob(f"{tmp_path}/out", 0, "claim", "", 10**6), threading.Lock()
    with ThreadPoolExecutor(1) as pool:
        with network:
            done = pool.submit(predict_part, job, Noting(), ["red"], network=network)
            # The batches of this detector have three pictures.
            assert [decoded.get(timeout=60) for _ in range(6)] == list(range(6))
            assert seen == [] and not done.done()
        assert done.result().ok == 10 and seen == [3, 3, 3, 1]
