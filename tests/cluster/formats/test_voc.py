from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cluster.errors import DataError
from cluster.formats import voc
from cluster.formats.annotations import Annotation, ImageRecord, Source
from cluster.shards.format import Category
from cluster.storage import files


def thing(name: str = "dog", box: tuple[object, ...] = (11, 21, 40, 60), more: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def write(folder: Path, **files: str) -> str:
    """XML files by their stem; what does not begin with < is the content of <annotation> for
    <stem>.jpg.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stem, text in files.items():
        size = "<size><width>200</width><height>100</height></size>"
        head = f"<annotation><filename>{stem}.jpg</filename>{size}"
        (folder / f"{stem}.xml").write_text(
            text.removeprefix("!")
            if text.startswith(("<annotation", "!"))
            else f"{head}{text}</annotation>"
        )
    return str(folder)


def reasons(source: Source) -> list[tuple[str, str, str]]:
    return [(record.what, record.where, record.why) for record in source.quarantined]


def test_boxes_count_from_zero_and_end_behind_the_last_pixel(tmp_path: Path) -> None:
    source = voc.read_voc(
        write(tmp_path, b=thing("dog") + thing("cat", (1, 1, 200, 100)), a=""), "images"
    )
    # Sorted names; ids from 1. Pixels 11..40 of 1..200 are 10..40 half-open; the whole picture is
    # 0, 0, 200, 100.
    assert source.categories == (Category(0, 1, "cat"), Category(1, 2, "dog"))
    assert tuple(source.images) == (
        ImageRecord(1, "a.jpg", 100, 200, ()),
        ImageRecord(
            2,
            "b.jpg",
            100,
            200,
            (
                Annotation(1, 1, (10.0, 20.0, 40.0, 60.0), False, None),
                Annotation(2, 0, (0.0, 0.0, 200.0, 100.0), False, None),
            ),
        ),
    )
    assert (source.listed, source.annotated, source.lost, source.quarantined, source.repairs) == (
        2,
        2,
        0,
        (),
        {},
    )


def test_difficult_objects_are_crowds_and_counted(tmp_path: Path) -> None:
    source = voc.read_voc(
        write(
            tmp_path,
            a=thing(more="<difficult>1</difficult>") + thing(more="<difficult>0</difficult>"),
        ),
        "images",
    )
    assert [one.crowd for one in source.images[0].annotations] == [True, False]
    assert source.repairs == {"difficult objects, stored as crowds": 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (thing(box=(1, 2, 3)), "its bndbox is not four finite numbers"),
        (thing(box=(1, 2, 3, "x")), "its bndbox is not four finite numbers"),
        (thing(box=(1, 2, 3, "nan")), "its bndbox is not four finite numbers"),
        (thing(box=(1, 2, 3, "1e400")), "its bndbox is not four finite numbers"),
        (thing(""), "it has no name"),
    ],
)
def test_a_bad_object_is_left_out_alone(tmp_path: Path, text: str, why: str) -> None:
    source = voc.read_voc(write(tmp_path, a=thing() + text), "images")
    assert reasons(source) == [("annotation", "2 of a.jpg", why)] and source.annotated == 2
    assert [one.id for one in source.images[0].annotations] == [1]
    assert "<object>" in source.quarantined[0].raw


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("!", "it is not valid XML"),
        ("!<annotation><object>", "it is not valid XML"),
        ("<annotation></annotation>", "it has no filename"),
        (
            "<annotation><filename>..</filename></annotation>",
            "its filename names no file",
        ),
        (
            "<annotation><filename>a.jpg</filename><object>"
            + "<x>" * 3000
            + "</x>" * 3000
            + "</object></annotation>",
            "it is not valid XML",
        ),
        # A billion laughs: expat stops at the multiplication.
        (
            '!<!DOCTYPE x [<!ENTITY a "ha">'
            + "".join(
                f'<!ENTITY {"abcdefghijk"[n + 1]} "{("&" + "abcdefghijk"[n] + ";") * 10}">'
                for n in range(9)
            )
            + "]><annotation><filename>&j;</filename></annotation>",
            "it is not valid XML",
        ),
    ],
)
def test_a_bad_file_is_left_out_alone(tmp_path: Path, text: str, why: str) -> None:
    source = voc.read_voc(write(tmp_path, good=thing(), bad=text), "images")
    ((what, where, reason),) = reasons(source)
    assert (what, where) == ("image", "bad.xml") and reason.startswith(why)
    assert [image.file_name for image in source.images] == ["good.jpg"] and source.listed == 2


@pytest.mark.parametrize("width", ["0", "30.5", "9" * 5000])
def test_invalid_sizes_are_taken_from_the_pixels(tmp_path: Path, width: str) -> None:
    size = f"<size><width>{width}</width><height>x</height></size>"
    text = f"<annotation><filename>a.jpg</filename>{size}{thing()}</annotation>"
    image = voc.read_voc(write(tmp_path, a=text), "images").images[0]
    assert (image.height, image.width) == (None, None)


def test_classes_txt_gives_the_classes_and_their_order(tmp_path: Path) -> None:
    folder = write(tmp_path, a=thing("dog") + thing("bird"))
    (tmp_path / "classes.txt").write_text("dog\ncat\n\n")
    source = voc.read_voc(folder, "images")
    assert source.categories == (Category(0, 1, "dog"), Category(1, 2, "cat"))
    assert reasons(source) == [("annotation", "2 of a.jpg", "its class is not in classes.txt")]
    (tmp_path / "classes.txt").write_text("dog\ndog\n")
    with pytest.raises(DataError, match="names 'dog' twice"):
        voc.read_voc(folder, "images")


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.xml file below it"):
        voc.read_voc(str(tmp_path / "empty"), "images")
    with pytest.raises(
        DataError, match=r"no usable object in any of its 1 files \(there are none\)"
    ):
        voc.read_voc(write(tmp_path / "bare", a=""), "images")
    twice = "<annotation><filename>a.jpg</filename>" + thing() + "</annotation>"
    with pytest.raises(
        DataError, match=r"b\.xml: describes 'a\.jpg', which another file describes too"
    ):
        voc.read_voc(write(tmp_path / "twice", a=twice, b=twice), "images")


def test_a_split_keeps_ids_and_classes(tmp_path: Path) -> None:
    folder = write(tmp_path, a=thing("dog"), b=thing("cat"), c=thing("cow"))
    whole = voc.read_voc(folder, "images")
    parts = [
        voc.read_voc(folder, "images", keep)
        for keep in (lambda name: name == "b.jpg", lambda name: name != "b.jpg")
    ]
    assert sorted(image for part in parts for image in part.images) == sorted(whole.images)
    assert {part.categories for part in parts} == {whole.categories} and [
        part.listed for part in parts
    ] == [1, 2]


def test_a_bucket_reads_like_a_folder_and_the_digest_is_that_of_the_content(
    tmp_path: Path, bucket: str
) -> None:
    local = voc.read_voc(write(tmp_path, a=thing()), "images")
    files.upload_folder(str(tmp_path), f"{bucket}/voc")
    assert voc.read_voc(f"{bucket}/voc", "images").digest == local.digest
    assert voc.read_voc(write(tmp_path, a=thing() + thing()), "images").digest != local.digest
    assert voc.parse_voc(b"<a/>").sha256 == hashlib.sha256(b"<a/>").hexdigest()


def pictures(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return str(folder)


def test_every_box_of_an_object_is_one(tmp_path: Path) -> None:
    # ybat writes all boxes of a class into one <object>.
    box = "<bndbox><xmin>{0}</xmin><ymin>1</ymin><xmax>{1}</xmax><ymax>9</ymax></bndbox>"
    boxes = "".join(box.format(10 * n + 1, 10 * n + 9) for n in range(3))
    text = f"<object><name>cat</name>{boxes}</object>{thing('dog')}"
    source = voc.read_voc(write(tmp_path, a=text), "images")
    annotations = source.images[0].annotations
    assert [one.id for one in annotations] == [1, 2, 3, 4] and source.annotated == 4
    assert [one.box[0] for one in annotations] == [0, 10, 20, 10]
    assert source.annotated == text.count("<bndbox>")


def test_namespaces_and_encodings_that_tools_write(tmp_path: Path) -> None:
    body = f"<filename>a.jpg</filename>{thing('猫')}"
    folder = write(tmp_path, a=f"<annotation xmlns='http://a/b'>{body}</annotation>")
    head = "<?xml version='1.0' encoding='gb2312'?>"
    text = f"{head}<annotation>{body.replace('a.jpg', 'b.jpg')}</annotation>"
    (tmp_path / "b.xml").write_bytes(text.encode("gb2312"))
    source = voc.read_voc(folder, "images")
    assert [category.name for category in source.categories] == ["猫"]
    assert [len(image.annotations) for image in source.images] == [1, 1]


def test_corners_in_another_order_are_the_same_box(tmp_path: Path) -> None:
    straight, turned = (
        voc.read_voc(write(tmp_path / name, a=thing("cat", corners)), "images")
        for name, corners in (("a", (11, 21, 40, 60)), ("b", (40, 60, 11, 21)))
    )
    assert tuple(turned.images) == tuple(straight.images)
    assert turned.repairs == {"boxes whose corners are given in another order": 1}


def test_a_rotated_box_is_named(tmp_path: Path) -> None:
    rotated = "<object><name>ship</name><robndbox><cx>5</cx></robndbox></object>"
    with pytest.raises(
        DataError, match=r"no usable object .*\(1 x it has a rotated box \(robndbox"
    ):
        voc.read_voc(write(tmp_path, a=rotated), "images")
    source = voc.read_voc(write(tmp_path, a=rotated, b=thing("ship")), "images")
    ((what, _, why),) = reasons(source)
    assert what == "annotation" and why.startswith("it has a rotated box (robndbox) alone")


@pytest.mark.parametrize("size", [("96.0", "64.0"), (" 96 ", "64")])
def test_sizes_as_tools_write_them(tmp_path: Path, size: tuple[str, str]) -> None:
    given = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    text = f"<annotation><filename>a.jpg</filename>{given}{thing()}</annotation>"
    image = voc.read_voc(write(tmp_path, a=text), "images").images[0]
    assert (image.height, image.width) == (64, 96)


@pytest.mark.parametrize("given", ["", "<filename>0001</filename>", "<filename>old.png</filename>"])
def test_the_picture_of_the_xml_files_own_name_settles_a_name_that_fits_none(
    tmp_path: Path, given: str
) -> None:
    folder = write(tmp_path / "xml", **{"0001": f"<annotation>{given}{thing()}</annotation>"})
    images = pictures(tmp_path / "images", "0001.jpg")
    source = voc.read_voc(folder, images)
    assert [image.file_name for image in source.images] == ["0001.jpg"]
    assert sum(source.repairs.values()) == 1 and source.quarantined == ()


def test_two_folders_may_use_the_same_names(tmp_path: Path) -> None:
    text = f"<annotation><filename>0001.jpg</filename>{thing()}</annotation>"
    for camera in ("cam1", "cam2"):
        write(tmp_path / "xml" / camera, **{"0001": text})
    images = pictures(tmp_path / "images", "cam1/0001.jpg", "cam2/0001.jpg")
    source = voc.read_voc(str(tmp_path / "xml"), images)
    assert [image.file_name for image in source.images] == ["cam1/0001.jpg", "cam2/0001.jpg"]


def test_a_name_that_fits_a_picture_is_believed(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "xml", b=f"<annotation><filename>a.jpg</filename>{thing()}</annotation>"
    )
    source = voc.read_voc(folder, pictures(tmp_path / "images", "a.jpg", "b.jpg"))
    assert [image.file_name for image in source.images] == ["a.jpg"] and source.repairs == {}
