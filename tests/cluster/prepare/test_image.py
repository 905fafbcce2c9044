"""One image and its boxes: pixels, EXIF orientations, failing files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import PlainError
from cluster.formats.annotations import Annotation, ImageRecord
from cluster.prepare import image as image_file
from cluster.shards import quarantine
from cluster.shards.format import Row
from cluster.storage import files
from detector.image import decode_image
from tests.support.pictures import jpeg, noise


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
    row, dropped, repairs = image_file.ingest_image(
        record, data, max_pixels=10**6, category_ids=(1,)
    )
    assert row is not None
    return row, dropped, dict(+repairs)


def test_the_size_comes_from_the_pixels(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Twice and 1.5 times the 20 x 30 px of the file, and a third of it, rounded up.
        ((40, 60), [[2, 3, 12, 13]]),
        ((30, 45), [[4 / 1.5, 4, 16, 26 / 1.5]]),
        ((7, 10), [[12, 6 * 20 / 7, 30, 20]]),
    ],
)
def test_boxes_are_scaled_with_a_picture_of_the_same_shape(
    tmp_path: Path, given: tuple[int, int], expected: list[list[float]]
) -> None:
    row, _, repairs = ingest_one(
        tmp_path, jpeg(noise(20, 30)), image_record(*given, (4, 6, 24, 26))
    )
    np.testing.assert_allclose(row.boxes_N4, expected, rtol=1e-5)
    assert "images of another size than in the annotations, whose boxes were scaled with them" in (
        repairs
    )


@pytest.mark.parametrize(
    ("given", "box"),
    [
        # A side was rounded; height and width were exchanged; the box leaves the size given, so it
        # was not drawn on such a picture.
        ((21, 30), (4, 6, 24, 20)),
        ((30, 20), (4, 6, 20, 20)),
        ((10, 15), (4, 6, 24, 20)),
        ((10, 90), (4, 6, 24, 20)),
    ],
)
def test_a_size_that_the_boxes_contradict_is_taken_from_the_pixels(
    tmp_path: Path, given: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    row, _, repairs = ingest_one(tmp_path, jpeg(noise(20, 30)), image_record(*given, box))
    assert row.boxes_N4.tolist() == [list(box)]
    assert repairs == {"image sizes wrong in the annotations, taken from the pixels": 1}


@pytest.mark.parametrize("given", [(40, 90), (20, 60), (60, 40), (25, 30)])
def test_boxes_of_a_picture_of_another_shape_are_left_out(given: tuple[int, int]) -> None:
    record = image_record(*given, (2, 3, 12, 13))
    row, (left_out,), _ = image_file.ingest_image(
        record, jpeg(noise(20, 30)), max_pixels=10**6, category_ids=(1,)
    )
    assert row is None
    assert left_out.why.startswith("its annotations are for a picture of another shape")
    assert left_out.detail == f"{given[1]} x {given[0]} px, the file has 30 x 20"
    # Without objects nothing can be in the wrong place.
    row, _, _ = ingest_one(Path(), jpeg(noise(20, 30)), image_record(*given))
    assert (row.height, row.width) == (20, 30)


@pytest.mark.parametrize("turn", range(2, 9))
def test_exif_where_the_json_fits_the_upright_picture(tmp_path: Path, turn: int) -> None:
    data = jpeg(noise(20, 30), turn=turn)
    upright = decode_image(data)
    height, width = (30, 20) if turn >= 5 else (20, 30)
    row, _, repairs = ingest_one(tmp_path, data, image_record(height, width, (1, 2, 11, 12)))
    assert (row.height, row.width) == (height, width) and row.boxes_N4.tolist() == [[1, 2, 11, 12]]
    assert image_file.read_header(row.image) == (1, "JPEG")
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


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_boxes_that_fit_the_upright_picture_alone_are_not_turned(tmp_path: Path, turn: int) -> None:
    # The annotations give the size in the file, 20 x 30, but the box reaches down to 28 px: it was
    # drawn on the upright picture of 30 x 20 px.
    box = (4, 10, 16, 28)
    row, _, repairs = ingest_one(
        tmp_path, jpeg(noise(20, 30), turn=turn), image_record(20, 30, box)
    )
    assert (row.height, row.width) == (30, 20) and row.boxes_N4.tolist() == [list(box)]
    assert repairs == {
        "images with an EXIF orientation, stored upright": 1,
        "image sizes wrong in the annotations, taken from the pixels": 1,
    }


def test_a_failing_storage_is_not_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(uri: str) -> bytes:
        raise OSError("503 slow down")

    monkeypatch.setattr(files, "open_input", unavailable)
    with pytest.raises(
        PlainError, match="a.jpg: cannot be read .503 slow down.; run the command again"
    ):
        image_file.read_picture(image_record(1, 1), str(tmp_path))


def test_a_file_that_is_too_large_for_a_picture_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "1.jpg", "wb") as file:
        file.truncate(1 << 40)
    record = image_record(1, 1)._replace(file_name="1.jpg")
    assert image_file.read_picture(record, str(tmp_path)) == (
        "the file has more than 256 MiB; save the picture in a smaller format"
    )


def test_fractions_become_pixels_of_the_upright_picture() -> None:
    box = (0.5, 0.1, 1.005, 0.9)
    annotations = (Annotation(1, 0, box, False, None),)
    record = ImageRecord(1, "a.jpg", None, None, annotations, normalised=True)
    black = np.zeros((20, 30, 3), np.uint8)
    options = {"max_pixels": 10**6, "category_ids": (1, 2, 3)}
    row, _, _ = image_file.ingest_image(record, jpeg(black), **options)
    # 30 x 20 px: 0.5 * 30 = 15, 0.1 * 20 = 2, a little over 30 is cut, 0.9 * 20 = 18.
    assert row is not None
    assert row.boxes_N4.tolist() == [[15, 2, 30, 18]] and row.area_N == [15.0 * 16]
    # Upright it is 20 wide and 30 high: 10, 3, 20, 27.
    row, _, _ = image_file.ingest_image(record, jpeg(black, turn=6), **options)
    assert row is not None and row.boxes_N4 == pytest.approx(np.array([[10, 3, 20, 27]]))


def test_a_picture_that_is_damaged_in_its_zip_is_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("1.jpg", b"content")
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"content", b"CONTENT"))
    record = image_record(1, 1, (0, 0, 1, 1))._replace(file_name="1.jpg")
    read = image_file.read_picture(record, f"{tmp_path}/a.zip")
    row, (left_out,), _ = image_file.ingest_image(record, read, max_pixels=1, category_ids=[7])
    assert row is None and left_out.why == read == "the file is damaged in its zip"
    missing = image_file.read_picture(record._replace(file_name="2.jpg"), f"{tmp_path}/a.zip")
    assert missing == "the file is not in the images folder"
