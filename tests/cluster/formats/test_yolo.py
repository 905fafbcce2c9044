from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from cluster.formats import yolo
from cluster.formats.annotations import Findings, ImageRecord, Source
from cluster.shards.format import Category


def write(
    folder: Path,
    *,
    pictures: tuple[str, ...] = ("a.jpg",),
    names: str = "names: [cat, dog]",
    **labels: str,
) -> tuple[str, str]:
    for name in pictures:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(b"x")
    (folder / "labels").mkdir(exist_ok=True)
    for stem, text in labels.items():
        (folder / "labels" / f"{stem}.txt").write_text(text)
    (folder / "data.yaml").write_text(names)
    return str(folder / "labels"), str(folder / "images")


def reasons(source: Source) -> list[tuple[str, str, str]]:
    return [(record.what, record.where, record.why) for record in source.quarantined]


def test_a_good_set(tmp_path: Path) -> None:
    source = yolo.read_yolo(
        *write(tmp_path, pictures=("a.jpg", "b.png"), a="1 0.5 0.5 0.2 0.4\n\n0 0.25 0.5 0.5 1\n")
    )
    assert source.categories == (Category(0, 0, "cat"), Category(1, 1, "dog"))
    # 0.5 -+ 0.2 / 2 = 0.4, 0.6; 0.5 -+ 0.4 / 2 = 0.3, 0.7. The third line of the file is the second
    # box.
    first, second = source.images[0].annotations
    assert (first.id, first.label, first.crowd, first.area) == (
        1,
        1,
        False,
        None,
    ) and first.box == pytest.approx((0.4, 0.3, 0.6, 0.7))
    assert (second.id, second.label) == (3, 0) and second.box == pytest.approx((0.0, 0.0, 0.5, 1.0))
    assert source.images[0].normalised and source.images[1] == ImageRecord(
        2, "b.png", None, None, (), 0, True
    )
    assert (source.listed, source.annotated, source.lost, source.quarantined) == (2, 2, 0, ())


@settings(deadline=None)
@given(
    corners=st.tuples(*[st.floats(0, 1)] * 4).map(
        lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
    ),
)
def test_centre_and_size_become_corners(
    corners: tuple[float, float, float, float],
) -> None:
    x1, y1, x2, y2 = corners
    line = f"0 {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}"
    (one,) = yolo.read_labels(line.encode(), "a.jpg", 1, Findings())
    assert one.box == pytest.approx(corners, abs=1e-12)


def test_polygons_become_their_bounding_boxes(tmp_path: Path) -> None:
    source = yolo.read_yolo(*write(tmp_path, a="0 0.1 0.9 0.5 0.2 0.3 0.4\n"))
    assert source.images[0].annotations[0].box == (0.1, 0.2, 0.5, 0.9)
    assert source.repairs == {"polygons, stored as their bounding boxes": 1}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0 0.5 0.5 0.2", "its line is not a class number and four numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "its line is not a class number and four numbers"),
        ("cat 0.5 0.5 0.2 0.2", "its line is not a class number and four numbers"),
        ("0 a b c d", "its line is not a class number and four numbers"),
        ("\x00\ufffd", "its line is not a class number and four numbers"),
        ("2 0.5 0.5 0.2 0.2", "its class number is not one of the classes"),
        ("-1 0.5 0.5 0.2 0.2", "its class number is not one of the classes"),
        ("0.5 0.5 0.5 0.2 0.2", "its class number is not one of the classes"),
        ("0 320 240 50 50", "its numbers are not shares of the picture, from 0 to 1"),
        ("0 nan 0.5 0.2 0.2", "its numbers are not shares of the picture, from 0 to 1"),
        ("0 0.5 0.5 -0.2 0.2", "its numbers are not shares of the picture, from 0 to 1"),
    ],
)
def test_a_bad_line_is_left_out_alone(tmp_path: Path, line: str, why: str) -> None:
    source = yolo.read_yolo(*write(tmp_path, a=f"0 0.5 0.5 0.2 0.2\n{line}\n1 0.5 0.5 0.2 0.2"))
    ((what, where, reason),) = reasons(source)
    assert (what, where) == ("annotation", "2 of a.jpg") and reason.startswith(why)
    assert [one.id for one in source.images[0].annotations] == [1, 3] and source.annotated == 3


def test_label_files_without_an_image_are_left_out_and_counted(tmp_path: Path) -> None:
    source = yolo.read_yolo(
        *write(tmp_path, a="0 0.5 0.5 0.2 0.2", gone="0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.1 0.1\n")
    )
    assert reasons(source) == [("image", "gone.txt", "there is no image for this label file")]
    assert (source.listed, source.annotated, source.lost) == (2, 3, 2)


def test_lists_and_notes_beside_the_labels_are_passed_over(tmp_path: Path) -> None:
    labels, images = write(
        tmp_path,
        a="0 0.5 0.5 0.2 0.2",
        train="images/a.jpg\nimages/b.jpg\n",
        README="Exported by a tool on 2024 01 01 10 30, with 4 pictures.\n",
    )
    (tmp_path / "labels/classes.txt").write_text("cat\ndog\n")
    for name in (".ipynb_checkpoints/a.jpg", "._a.jpg", "a.heic"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"x")
    (tmp_path / "labels/._a.txt").write_bytes(b"\0\5\x16\7 1 2 3 4 5")
    source = yolo.read_yolo(labels, images)
    assert source.quarantined == () and (source.listed, source.annotated) == (1, 1)
    assert source.passed_over == {
        "a hidden file or one that a tool left behind": 2,
        "a .heic picture, whose format is not read; convert it to JPEG": 1,
        "a .txt file without a label line": 2,
    }


@pytest.mark.parametrize("suffix", [".jp2", ".avif", ".ppm", ".jfif", ".mpo", ".JPE", ".dib"])
def test_pictures_of_every_format_that_is_read_have_their_labels(
    tmp_path: Path, suffix: str
) -> None:
    source = yolo.read_yolo(*write(tmp_path, pictures=(f"a{suffix}",), a="0 0.5 0.5 0.2 0.2"))
    assert [len(image.annotations) for image in source.images] == [1]


def test_the_lines_of_an_image_that_is_left_out_are_counted(tmp_path: Path) -> None:
    # Two pictures have the same label file; a third has a name that no file may have.
    source = yolo.read_yolo(
        *write(
            tmp_path,
            pictures=("a.jpg", "a.png", "b.jpg"),
            a="0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n",
            b="0 0.5 0.5 0.2 0.2\n",
        )
    )
    assert (source.listed, source.annotated, source.lost) == (3, 3, 2)


def test_the_box_of_a_pose_is_used(tmp_path: Path) -> None:
    # A box of 0.2 x 0.4 around (0.5, 0.5) and two keypoints of two numbers; as a polygon its box
    # would be another.
    names = "names: [cat]\nkpt_shape: [2, 2]\n"
    line = "0 0.5 0.5 0.2 0.4 0.41 0.9 0.6 0.31"
    source = yolo.read_yolo(*write(tmp_path, names=names, a=f"{line}\n0 0.5 0.5 0.2 0.4\n"))
    first, second = source.images[0].annotations
    assert first.box == second.box == pytest.approx((0.4, 0.3, 0.6, 0.7))
    assert source.repairs == {"poses, of which the box is used": 1}
    with pytest.raises(DataError, match=r"`kpt_shape` must be .* such as \[17, 3\], is seventeen"):
        yolo.read_yolo(*write(tmp_path, names="names: [cat]\nkpt_shape: seventeen", a=line))


def test_names_in_another_unicode_form_belong_together(tmp_path: Path) -> None:
    split = unicodedata.normalize("NFD", "bär")
    source = yolo.read_yolo(
        *write(
            tmp_path,
            pictures=(f"{split}.jpg",),
            **{unicodedata.normalize("NFC", "bär"): "0 0.5 0.5 0.2 0.2"},
        )
    )
    assert len(source.images[0].annotations) == 1 and source.quarantined == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("names: {0: cat, 2: dog}", "must give one for each number from 0 on; 1 is missing"),
        ("names: {a: cat}", "must give one for each number from 0 on; 0 is missing"),
        ("names: [cat, cat]", "`names` has 'cat' twice; each class needs its own name"),
        ("names: {0: cat, 0: dog}", "not valid YAML: '0' stands twice"),
        ("names: [cat, [dog]]", r"name 1 of `names` is no text \("),
        ("names:\n  0:car\n  1:dog\n", "one text, '0:car 1:dog'; write .* with a blank behind the"),
        ("nc: 2", r"has no `names`; it must list the classes: `names: \[cat, dog\]`"),
        ("names: []", "names no class"),
        ("names: [", "not valid YAML"),
        (
            "nc: 3\nnames: [cat, dog]",
            "`nc`, the number of classes, is 3, but `names` has 2; correct",
        ),
        ("nc: 1\nnames: {0: cat, 1: dog}", "`nc`, the number of classes, is 1, but `names` has 2"),
        ("nc: two\nnames: [cat, dog]", "`nc`, the number of classes, is two, but `names` has 2"),
    ],
)
def test_class_names_that_cannot_be_used(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        yolo.read_yolo(*write(tmp_path, names=names, a=""))


@pytest.mark.parametrize(
    "names", ["names: [yes, no, 02146, 1.0]", "names: {0: yes, 1: no, 2: 02146, 3: 1.0}"]
)
def test_class_names_are_the_text_that_stands_there(tmp_path: Path, names: str) -> None:
    source = yolo.read_yolo(*write(tmp_path, names=names, a=""))
    assert [category.name for category in source.categories] == ["yes", "no", "02146", "1.0"]


@pytest.mark.parametrize("count", ["nc: 2\n", "nc: '2'  # classes\n", "nc: 2.0\n", "nc:\n", ""])
def test_a_number_of_classes_that_is_right_or_not_given(tmp_path: Path, count: str) -> None:
    source = yolo.read_yolo(*write(tmp_path, names=f"{count}names: [cat, dog]", a=""))
    assert [category.name for category in source.categories] == ["cat", "dog"]


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "classes.txt", "obj.names"])
def test_text_files_of_every_encoding_are_read_alike(
    tmp_path: Path, name: str, encoding: str
) -> None:
    labels, images = write(tmp_path)
    (tmp_path / "data.yaml").unlink()
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = "nc: 2\r\nnames: [Bär, 猫]\r\n" if name.startswith("data") else "Bär\r\n猫\r\n"
    (tmp_path / name).write_bytes((mark + text).encode(encoding))
    label = f"{mark}1 0.5 0.5 0.2 0.4\r\n0 0.5 0.5 0.2 0.2\r\n"
    (tmp_path / "labels/a.txt").write_bytes(label.encode(encoding))
    (tmp_path / "labels/gone.txt").write_bytes(label.encode(encoding))
    source = yolo.read_yolo(labels, images)
    assert [category.name for category in source.categories] == ["Bär", "猫"]
    assert [one.label for one in source.images[0].annotations] == [1, 0]
    # The label file without an image has two labels, and is no note.
    assert reasons(source) == [("image", "gone.txt", yolo.NO_IMAGE)] and source.lost == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfec\x00a", "byte 4 is not UTF-16-LE; it must hold a class name a line"),
        (b"cat\n\xff", "byte 4 is not UTF-8; it must hold a class name a line"),
    ],
)
def test_a_text_file_that_is_cut_off_or_no_text(tmp_path: Path, data: bytes, message: str) -> None:
    labels, images = write(tmp_path, a="")
    (tmp_path / "labels/classes.txt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        yolo.read_yolo(labels, images)


def test_the_nearest_class_names_count(tmp_path: Path) -> None:
    labels, images = write(tmp_path / "set", names="names: [far, away]", a="")
    (tmp_path / "set/data.yaml").rename(tmp_path / "data.yaml")
    (tmp_path / "set/labels/classes.txt").write_text("helmet\nvest\n")
    categories = yolo.read_yolo(labels, images).categories
    assert [category.name for category in categories] == ["helmet", "vest"]
    (tmp_path / "set/labels/data.yaml").write_text("names: [near, by]")
    categories = yolo.read_yolo(labels, images).categories
    assert [category.name for category in categories] == ["near", "by"]


def test_class_names_by_number_or_in_a_text_file(tmp_path: Path) -> None:
    labels, images = write(tmp_path, names="names: {1: dog, 0: cat}", a="")
    assert [category.name for category in yolo.read_yolo(labels, images).categories] == [
        "cat",
        "dog",
    ]
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(
        DataError, match=r"no data\.yaml, classes\.txt or obj\.names there or up to two folders"
    ):
        yolo.read_yolo(labels, images)
    (tmp_path / "labels/classes.txt").write_text("bird\ncow\n")
    source = yolo.read_yolo(labels, images)
    assert [category.name for category in source.categories] == [
        "bird",
        "cow",
    ] and source.quarantined == ()


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.txt file below it"):
        yolo.read_yolo(*write(tmp_path / "a"))
    with pytest.raises(DataError, match="no image below it"):
        yolo.read_yolo(*write(tmp_path / "b", pictures=("a.txt",), a=""))


def test_a_split_keeps_ids(tmp_path: Path) -> None:
    places = write(tmp_path, pictures=("a.jpg", "b.jpg", "c.jpg"), b="0 0.5 0.5 0.2 0.2")
    parts = [
        yolo.read_yolo(*places, keep)
        for keep in (lambda name: name == "b.jpg", lambda name: name != "b.jpg")
    ]
    assert sorted(image for part in parts for image in part.images) == sorted(
        yolo.read_yolo(*places).images
    )


def test_pictures_that_share_a_label_file_are_left_out(tmp_path: Path) -> None:
    label = "0 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n"
    source = yolo.read_yolo(
        *write(tmp_path, pictures=("a.jpg", "a.png", "b.jpg", "c.jpg", "c.png"), a=label, b=label)
    )
    assert [record.file_name for record in source.images] == ["b.jpg"]
    assert reasons(source) == [
        ("image", name, yolo.SAME_STEM) for name in ("a.jpg", "a.png", "c.jpg", "c.png")
    ]
    # Four labels are listed; the two that belong to either a.jpg or a.png are lost with them.
    assert (source.listed, source.annotated, source.lost) == (5, 4, 2)


def test_two_files_that_name_other_classes_are_told(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"")
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "labels/classes.txt").write_text("dog\nperson")
    (tmp_path / "data.yaml").write_text("names: [red, green]")
    read = yolo.read_yolo(f"{tmp_path}/labels", f"{tmp_path}/images")
    assert [category.name for category in read.categories] == ["dog", "person"]
    (doubt,) = read.doubts
    assert doubt == (
        f"the classes are those of {tmp_path}/labels/classes.txt (dog, person), but"
        f" {tmp_path}/data.yaml names others (red, green); remove the file that is wrong"
    )
    (tmp_path / "data.yaml").write_text("names: [dog, person]")
    assert yolo.read_yolo(f"{tmp_path}/labels", f"{tmp_path}/images").doubts == ()
