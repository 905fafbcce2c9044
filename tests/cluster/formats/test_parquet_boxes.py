from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import DataError, UsageError
from cluster.formats.annotations import Annotation, ImageRecord, Source, keep_all
from cluster.formats.parquet_boxes import NO_OBJECTS, read_parquet
from cluster.shards.format import Category
from cluster.storage import parquet_pictures
from tests.support.parquet_sets import Row, row, write
from tests.support.pictures import jpeg, noise

XYWH = [(10, 20, 30, 40), (60, 20, 5, 50)]
CERTAIN = "boxes read as x, y, width, height, the one order that fits the pictures"


def read(folder: Path, rows: list[Row], **options: Any) -> Source:
    return read_parquet(write(folder / "train.parquet", rows, **options), str(folder), keep_all)


def reasons(source: Source) -> list[tuple[str, str, str]]:
    return [(one.what, one.where, one.why) for one in source.quarantined]


def test_a_good_file(tmp_path: Path) -> None:
    objects = {
        "bbox": [[10.0, 20, 30, 40], [60, 20, 5, 50]],
        "category": [1, 0],
        "area": [900.5, None],
        "iscrowd": [False, True],
    }
    source = read(tmp_path, [row(7, objects=objects), row(3)])
    assert source.categories == (Category(0, 0, "cat"), Category(1, 1, "dog"))
    assert list(source.images) == [
        ImageRecord(3, "train.parquet#1", 80, 100, ()),
        ImageRecord(
            7,
            "train.parquet#0",
            80,
            100,
            (
                Annotation(1, 1, (10, 20, 40, 60), False, 900.5),
                Annotation(2, 0, (60, 20, 65, 70), True, None),
            ),
        ),
    ]
    assert (source.listed, source.annotated, source.lost, source.quarantined) == (2, 2, 0, ())
    assert source.repairs == {CERTAIN: 2} and source.largest_id == 7


def test_objects_may_be_a_list_of_structs_and_categories_their_own_names(tmp_path: Path) -> None:
    objects = [
        {"bbox": [10, 20, 30, 40], "label": "dog"},
        {"bbox": [60, 20, 5, 50], "label": "ant"},
    ]
    source = read(tmp_path, [row(1, objects=objects)], names=None)
    assert [category.name for category in source.categories] == ["ant", "dog"]
    assert [one.label for one in source.images[0].annotations] == [1, 0]


def test_numbers_without_names_are_their_own_names_or_lines_of_classes_txt(tmp_path: Path) -> None:
    rows = [row(1, *XYWH, objects={"bbox": XYWH, "category_id": [9, 2]})]
    source = read(tmp_path, rows, names=None)
    assert source.categories == (Category(0, 2, "2"), Category(1, 9, "9"))
    assert [one.label for one in source.images[0].annotations] == [1, 0]
    assert [count for said, count in source.repairs.items() if "by their number" in said] == [2]
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    source = read(tmp_path, rows, names=None)
    assert [category.name for category in source.categories] == ["ant", "bee", "cat"]
    assert [one.label for one in source.images[0].annotations] == [2]
    assert reasons(source) == [
        ("annotation", "object 1 of train.parquet#0", "its category is not one of the classes")
    ]


NO_BOX = "its bbox is not four finite numbers"


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        ({"bbox": [[1.0, 2, 3]], "category": [1]}, NO_BOX),
        ({"bbox": [[1.0, float("nan"), 3, 4]], "category": [1]}, NO_BOX),
        ({"bbox": [[1.0, 2, None, 4]], "category": [1]}, NO_BOX),
        ({"bbox": [[1.0, 2, 3, 1e300]], "category": [1]}, NO_BOX),
        ({"bbox": [None], "category": [1]}, NO_BOX),
        ({"bbox": ["[1, 2, 3, 4]"], "category": [1]}, NO_BOX),
        ({"bbox": [[1.0, 2, 3, 4]], "category": [2]}, "its category is not one of the classes"),
        (
            {"bbox": [[1.0, 2, 3, 4]], "category": [-1]},
            "its category is neither a number from 0 on nor a name",
        ),
    ],
)
def test_a_bad_object_costs_itself(tmp_path: Path, objects: Row, why: str) -> None:
    write(tmp_path / "a.parquet", [row(1, *XYWH)])
    write(tmp_path / "b.parquet", [row(2, objects=objects)])
    source = read_parquet(str(tmp_path), str(tmp_path))
    assert reasons(source) == [("annotation", "object 1 of b.parquet#0", why)]
    assert [len(image.annotations) for image in source.images] == [2, 0]


def test_a_null_object_costs_itself(tmp_path: Path) -> None:
    source = read(tmp_path, [row(1, objects=[None, {"bbox": list(XYWH[0]), "category": 1}])])
    assert reasons(source) == [
        ("annotation", "object 1 of train.parquet#0", "the object is null or no struct")
    ]
    assert [one.id for one in source.images[0].annotations] == [2]


def test_a_bad_row_costs_itself(tmp_path: Path) -> None:
    rows = [
        row(1, *XYWH),
        row(2, *XYWH, objects={"bbox": XYWH, "category": [1]}),
        row(3, *XYWH, image=None),
        row(4, *XYWH, image={"bytes": None, "path": ".."}),
        row(1, *XYWH),
        row(-5, *XYWH),
        row(6, objects=None),
        row(7, image={"bytes": None, "path": "sub/c.jpg"}),
    ]
    source = read(tmp_path, rows)
    assert [image.file_name for image in source.images] == [
        "train.parquet#0",
        "train.parquet#6",
        "sub/c.jpg",
    ]
    assert reasons(source) == [
        (
            "image",
            "train.parquet#1 (2.jpg)",
            "the lists of its objects have different lengths",
        ),
        ("image", "train.parquet#2", "its image is null"),
        (
            "image",
            "train.parquet#3 (..)",
            "its file_name names no file",
        ),
        ("image", "train.parquet#4 (1.jpg)", "an earlier row has its image_id"),
        ("image", "train.parquet#5 (-5.jpg)", "its image_id is not an integer from 0 on"),
    ]
    # Seven rows of two boxes each, of which one row stays; rows 6 and 7 have none.
    assert (source.listed, source.annotated, source.lost) == (8, 12, 10)
    assert source.repairs[NO_OBJECTS] == 1


def test_pictures_may_be_the_names_of_files(tmp_path: Path) -> None:
    rows = [{**row(1, *XYWH), "image": "a.jpg"}, {**row(2, *XYWH), "image": "https://x.org/b.jpg"}]
    source = read(tmp_path, rows)
    assert [image.file_name for image in source.images] == ["a.jpg"]
    assert reasons(source)[0][2].startswith("its file_name is a URL")


def test_a_path_of_another_machine_is_no_file_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the sizes are looked up in the pictures."""
    looked_at: list[str] = []
    monkeypatch.setattr(
        parquet_pictures, "read_all", lambda uris: looked_at.extend(uris) or [None] * len(uris)
    )
    rows = [
        {"image": name, "objects": row(1, *XYWH)["objects"]} for name in ("/etc/a.png", "../b.png")
    ]
    source = read(tmp_path, rows)
    assert source.images.names == ["etc/a.png", "b.png"] and source.quarantined == ()
    assert source.images.elsewhere_I.tolist() == [True, True]
    assert looked_at == [f"{tmp_path}/etc/a.png", f"{tmp_path}/b.png"]


def test_rows_without_whole_image_ids_are_counted(tmp_path: Path) -> None:
    rows = [row(1, *XYWH, image_id="x"), row(2, *XYWH, image_id="x")]
    write(tmp_path / "set/b.parquet", rows[:1])
    write(tmp_path / "set/a/c.parquet", rows[1:])
    source = read_parquet(str(tmp_path / "set"), str(tmp_path / "set"))
    assert [(image.image_id, image.file_name) for image in source.images] == [
        (1, "a/c.parquet#0"),
        (2, "b.parquet#0"),
    ]


@pytest.mark.parametrize("order", ["xywh", "xyxy", "cxcywh"])
def test_the_format_may_name_the_order(tmp_path: Path, order: Any) -> None:
    uri = write(tmp_path / "train.parquet", [row(1, (10, 20, 30, 40))])
    source = read_parquet(uri, str(tmp_path), order=order)
    # Centre 10, 20 with sides 30, 40: 10 - 15 = -5, 20 - 20 = 0, 10 + 15 = 25, 20 + 20 = 40.
    boxes = {"xywh": (10, 20, 40, 60), "xyxy": (10, 20, 30, 40), "cxcywh": (-5, 0, 25, 40)}
    assert source.images[0].annotations[0].box == boxes[order] and source.repairs == {}


def test_an_order_that_is_not_certain_is_said_with_the_setting(tmp_path: Path) -> None:
    source = read(tmp_path, [row(1, (1, 1, 40, 40))])
    assert source.repairs == {
        "boxes read as x, y, width, height, though others fit too; to choose another, say --format"
        " parquet_xyxy or parquet_cxcywh": 1
    }


def test_the_size_of_the_pictures_decides_where_no_row_gives_it(tmp_path: Path) -> None:
    # As a side, 25 beyond 20 leaves the 30 px of the picture.
    picture = jpeg(noise(20, 30))
    rows = [row(1, (20, 2, 25, 9), data=picture, width=None, height=None)]
    source = read(tmp_path, rows)
    assert source.images[0].annotations[0].box == (20, 2, 25, 9)


def test_shares_of_the_picture(tmp_path: Path) -> None:
    objects = {
        "bbox": [[0.5, 0.25, 0.5, 0.75], [0, 0, 0.25, 0.5]],
        "category": [1, 1],
        "area": [1, 1],
    }
    (image,) = read(tmp_path, [row(1, objects=objects)]).images
    assert image.normalised
    assert [(one.box, one.area) for one in image.annotations] == [
        ((0.5, 0.25, 1, 1), None),
        ((0, 0, 0.25, 0.5), None),
    ]


def test_a_split_keeps_ids_labels_and_the_order_of_the_boxes(tmp_path: Path) -> None:
    # Of both rows only the second tells that the numbers are corners.
    rows = [
        row(1, objects={"bbox": [[1, 1, 40, 40]], "category": ["dog"]}),
        row(2, objects={"bbox": [[60, 20, 90, 70]], "category": ["cat"]}),
    ]
    uri = write(tmp_path / "train.parquet", rows, names=None)
    parts = [
        read_parquet(uri, str(tmp_path), lambda name, end=end: name.endswith(end))
        for end in ("#0", "#1")
    ]
    whole = read_parquet(uri, str(tmp_path))
    assert [image for part in parts for image in part.images] == list(whole.images)
    assert {part.categories for part in parts} == {whole.categories}
    assert [(part.listed, part.annotated, part.largest_id) for part in parts] == [(1, 1, 2)] * 2
    assert whole.images[0].annotations[0].box == (1, 1, 40, 40)


def test_other_pictures_are_other_data(tmp_path: Path) -> None:
    digests = {read(tmp_path, [row(1, *XYWH, data=data)]).digest for data in (b"a", b"a", b"bc")}
    assert len(digests) == 2


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with pytest.raises(DataError, match=r"no \.parquet file below it"):
        read_parquet(folder, folder)
    with pytest.raises(DataError, match=r"no usable object in any of its 1 rows \(1 x its bbox"):
        read(tmp_path, [row(1, (1, 2, 3))])
    uri = write(tmp_path / "train.parquet", [row(1, *XYWH)])
    pq.write_table(pq.read_table(uri).slice(0, 0), uri)
    with pytest.raises(DataError, match=r"train\.parquet: has no row"):
        read_parquet(uri, folder)
    pq.write_table(pa.table({"image": [b"x"], "boxes": [[1]]}), uri)
    with pytest.raises(
        DataError, match="its columns are boxes, image; it needs image, and objects"
    ):
        read_parquet(uri, folder)
    Path(uri).write_bytes(Path(uri).read_bytes()[:-30])
    with pytest.raises(DataError, match=r"train\.parquet: is damaged"):
        read_parquet(uri, folder)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = str(tmp_path)
    write(tmp_path / "data/train-00000-of-00001.parquet", [row(1, *XYWH)])
    write(tmp_path / "data/test-00000-of-00001.parquet", [row(2, *XYWH)])
    with pytest.raises(DataError, match=r"holds the files of several splits \(test, train\); put"):
        read_parquet(folder, folder)
    Path(tmp_path / "data/test-00000-of-00001.parquet").unlink()
    write(tmp_path / "data/train2.parquet", [row(2, *XYWH)], names=["dog", "cat"])
    with pytest.raises(DataError, match=r"train2\.parquet: its schema names other classes than"):
        read_parquet(folder, folder)
    write(tmp_path / "data/train2.parquet", [row(2, *XYWH)], names=["dog", "dog"])
    with pytest.raises(DataError, match="its schema names the class 'dog' twice"):
        read_parquet(folder, folder)


def test_a_file_of_another_suffix_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "train.pq", [row(1, *XYWH)])
    with pytest.raises(UsageError, match=r"train\.pq: the name .* must end in \.parquet"):
        read_parquet(uri, str(tmp_path))


def test_a_folder_of_images_beside_pictures_in_the_file_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "train.parquet", [row(1, *XYWH)])
    with pytest.raises(UsageError, match="--images .*elsewhere: is not needed, .*; leave it out"):
        read_parquet(uri, str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("metadata", [b"[", b"{}", b'{"info": {"features": {"objects": 5}}}'])
def test_a_schema_that_makes_no_sense_names_no_class(tmp_path: Path, metadata: bytes) -> None:
    uri = write(tmp_path / "train.parquet", [row(1, *XYWH)], names=None)
    table = pq.read_table(uri).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, uri)
    assert read_parquet(uri, str(tmp_path)).categories == (Category(0, 1, "1"),)
