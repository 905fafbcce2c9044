from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.formats.read import SourcePaths, check_paths

OPENIMAGES = b"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n"
BOXES = b"filename,class,xmin,ymin,xmax,ymax\n"


def tar(packed: str) -> bytes:
    """A tar archive with an annotation file in it."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=f"w:{packed}") as archive:  # pyright: ignore
        archive.addfile(tarfile.TarInfo("instances.json"), io.BytesIO(b""))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("coco", b"PAR1\x15\x04", "is a Parquet file, but .* format coco .*; say --format parquet"),
        ("csv", b"PAR1\x15\x04", "is a Parquet file, but .*; say --format parquet"),
        ("coco", OPENIMAGES, "is a CSV file of OpenImages, but .*; say --format openimages"),
        ("csv", OPENIMAGES, "is a CSV file of OpenImages, but .*; say --format openimages"),
        ("coco", BOXES, "is a CSV file, but .*; say --format csv"),
        ("openimages", BOXES, "is a CSV file, but .*; say --format csv"),
        ("parquet_xyxy", BOXES, "is a CSV file, but .*; say --format csv"),
        ("coco", b"image,x,y\na.jpg,1,2\n", "is a CSV file that begins with 'image,x,y', but"),
        ("csv", b"image,x,y\na.jpg,1,2\n", ".*; for --format csv name its columns filename"),
        ("csv", b'{"images": []}', "is a COCO JSON file, but .*; say --format coco"),
        (
            "parquet",
            b'\xef\xbb\xbf {\n "images": []}',
            "is a COCO JSON file, but .*; say --format coco",
        ),
        ("coco", b'{"a": 1}\n{"a": 2}\n', "is JSON lines, an object on each line, but .*; write"),
        ("coco", b"BZh91AY", "is a bzip2 file, but .*; unpack it"),
        ("coco", b"PK\x03\x04abc", "is a ZIP file, but .*; unpack it"),
        ("coco", b"7z\xbc\xaf\x27\x1c\x00", "is a 7z file, but .*; unpack it"),
        ("coco", tar(""), "is a tar archive, but .*; unpack it and name the folder"),
        ("voc", tar("gz"), "is a tar archive, but .*; unpack it and name the folder"),
        ("coco", tar("xz"), "is an XZ file, but .*; unpack it and name the folder"),
        ("coco", b"<annotation>", "is one of the XML files of VOC, but .*; name the folder"),
    ],
    # Bytes in a name would differ between processes: an archive has the time in it.
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_a_file_of_another_format_is_named_with_the_remedy(
    tmp_path: Path, format: str, content: bytes, message: str
) -> None:
    path = tmp_path / "annotations"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"^--annotations {path}: {message}"):
        check_paths(SourcePaths("a", format, str(path), str(tmp_path)))  # pyright: ignore


def test_a_file_of_class_names_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("names: [red, green, blue]")
    with pytest.raises(UsageError, match="data.yaml: is a YAML file, .*name the folder of the lab"):
        check_paths(SourcePaths("a", "yolo", str(path), str(tmp_path)))


def test_an_archive_in_the_place_of_the_images_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text('{"images": []}')
    (tmp_path / "images.tar.gz").write_bytes(tar("gz"))
    with pytest.raises(UsageError, match="images are in a folder; unpack it and name the folder"):
        check_paths(SourcePaths("a", "coco", f"{tmp_path}/all.json", f"{tmp_path}/images.tar.gz"))
