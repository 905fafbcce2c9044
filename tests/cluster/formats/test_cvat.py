from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import DataError
from cluster.formats import cvat
from cluster.formats.annotations import Annotation, ImageRecord, Source
from cluster.shards.format import Category

LABELS = (
    "<labels><label><name>dog</name><color>#fff</color></label><label><name>cat</name></label>"
    "<label><name>paw</name><parent>dog</parent></label></labels>"
)
BOX = '<box label="cat" occluded="0" xtl="10.5" ytl="20" xbr="30" ybr="40.25" z_order="0"/>'


def read(folder: Path, *images: str, labels: str = LABELS, meta: str = "task") -> Source:
    uri = folder / "annotations.xml"
    uri.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f"<meta><{meta}><name>x</name>{labels}</{meta}></meta>{''.join(images)}</annotations>"
    )
    return cvat.read_cvat(str(uri), str(folder))


def image(*shapes: str, id_: object = 4, name: str = "a.jpg", size: str = "640") -> str:
    return f'<image id="{id_}" name="{name}" width="{size}" height="480">{"".join(shapes)}</image>'


def reasons(source: Source) -> list[tuple[str, str, str]]:
    return [(record.what, record.where, record.why) for record in source.quarantined]


@pytest.mark.parametrize("meta", ["task", "project", "job"])
def test_a_good_file(tmp_path: Path, meta: str) -> None:
    source = read(tmp_path, image(BOX), image(id_=2, name="day/b.jpg"), meta=meta)
    # The part of a skeleton is no class.
    assert source.categories == (Category(0, 1, "dog"), Category(1, 2, "cat"))
    assert list(source.images) == [
        ImageRecord(2, "day/b.jpg", 480, 640, ()),
        ImageRecord(
            4, "a.jpg", 480, 640, (Annotation(1, 1, (10.5, 20.0, 30.0, 40.25), False, None),)
        ),
    ]
    assert (source.listed, source.annotated, source.lost, source.largest_id) == (2, 1, 0, 4)
    assert source.quarantined == () and source.repairs == {}


def of_subset(subset: str, *shapes: str, **options: str) -> str:
    return image(*shapes, **options).replace("<image ", f'<image subset="{subset}" ')


OTHER = BOX.replace("cat", "dog")


def labels_by_name(source: Source) -> dict[str, list[int]]:
    return {one.file_name: [box.label for box in one.annotations] for one in source.images}


@pytest.mark.parametrize("pictures", [(), ("Train/a.jpg", "Val/a.jpg", "Train/b.jpg"), ("a.jpg",)])
def test_the_same_name_in_two_subsets_is_two_pictures(
    tmp_path: Path, pictures: tuple[str, ...]
) -> None:
    for name in pictures:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = read(
        tmp_path,
        of_subset("Train", BOX, id_="0"),
        of_subset("Val", OTHER, id_="1"),
        of_subset("Train", OTHER, OTHER, id_="2", name="b.jpg"),
        image(id_=3, name="c.jpg"),
    )
    other = "Train/b.jpg" if "Train/b.jpg" in pictures else "b.jpg"
    assert labels_by_name(source) == {
        "Train/a.jpg": [1],
        "Val/a.jpg": [0],
        other: [0, 0],
        "c.jpg": [],
    }
    assert source.quarantined == () and (source.listed, source.lost) == (4, 0)


def test_the_same_name_twice_in_one_subset_is_a_fault(tmp_path: Path) -> None:
    source = read(tmp_path, of_subset("Train", BOX, id_="0"), of_subset("Train", OTHER, id_="1"))
    assert reasons(source) == [("image", "a.jpg", "another <image> has the same name")]


@pytest.mark.parametrize("subset", ["..", "/etc", "../x", "."])
def test_a_subset_does_not_lead_out_of_the_folder(tmp_path: Path, subset: str) -> None:
    source = read(tmp_path, of_subset(subset, BOX, id_="0"), of_subset("Val", OTHER, id_="1"))
    assert all(not name.startswith(("/", "..")) for name in source.images.names)
    assert (source.listed, source.annotated, source.quarantined) == (2, 2, ())


def test_polygons_and_masks_become_their_bounding_boxes(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        image(
            '<polygon label="cat" points="10.00,50.00;30.00,20.00;20.00,70.50"/>',
            '<mask label="dog" rle="3, 4" left="5" top="6" width="7" height="8"/>',
            '<box label="cat" xtl="30" ytl="40" xbr="10" ybr="20" rotation="360.0"/>',
        ),
    )
    # The mask: 5 + 7 = 12, 6 + 8 = 14.
    assert [one.box for one in source.images[0].annotations] == [
        (10, 20, 30, 70.5),
        (5, 6, 12, 14),
        (10, 20, 30, 40),
    ]
    assert source.repairs == {
        "polygons, stored as their bounding boxes": 1,
        "masks, stored as their bounding boxes": 1,
        "boxes whose corners are given in another order": 1,
    }


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (
            '<polyline label="cat" points="1,2;3,4"/>',
            "it has another shape; boxes, polygons",
        ),
        ('<points label="cat" points="1,2"/>', "it has another shape; boxes, polygons and masks"),
        (
            '<ellipse label="cat" cx="1" cy="2" rx="3" ry="4"/>',
            "it has another shape; boxes,",
        ),
        (BOX.replace("/>", ' rotation="12.5"/>'), "it is a turned box (rotation)"),
        (BOX.replace("/>", ' rotation="north"/>'), "it is a turned box (rotation)"),
        (BOX.replace("cat", "cow"), "its label is not in <labels>"),
        (BOX.replace("cat", ""), "it has no label"),
        (BOX.replace("10.5", "nan"), "its corners are not finite numbers"),
        (BOX.replace("10.5", "1e30"), "its corners are not finite numbers"),
        (BOX.replace("xtl", "left"), "its corners are not finite numbers"),
        ('<polygon label="cat" points="1,2;3"/>', "its corners are not finite numbers"),
        ('<polygon label="cat" points=""/>', "its corners are not finite numbers"),
        ('<mask label="cat" left="1" top="1" width="x" height="1"/>', "its corners are not finite"),
    ],
)
def test_a_bad_shape_costs_itself_alone(tmp_path: Path, shape: str, why: str) -> None:
    source = read(tmp_path, image(BOX, shape))
    ((what, where, said),) = reasons(source)
    assert (what, where) == ("annotation", "2 of a.jpg") and said.startswith(why)
    assert [one.id for one in source.images[0].annotations] == [1]
    assert (source.annotated, source.lost) == (2, 0)


def test_a_bad_image_costs_itself_alone(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        image(BOX, id_=0),
        image(BOX, BOX, id_=1),
        image(BOX, id_=2, name=".."),
        image(id_=3, name=""),
        image(id_=5, name="c.jpg", size="-1"),
    )
    assert reasons(source) == [
        ("image", "a.jpg", "another <image> has the same name"),
        ("image", "..", "its name names no file"),
        ("image", "?", "it has no name"),
    ]
    # Two boxes of the second image and one of the third.
    assert (source.listed, source.annotated, source.lost) == (5, 4, 3)
    assert [(one.image_id, one.width) for one in source.images] == [(0, 640), (5, None)]


@pytest.mark.parametrize("ids", [("1", "1"), ("", "1"), ("-1", "1"), ("x", "7"), ("99" * 20, "1")])
def test_ids_that_are_no_ids_are_counted(tmp_path: Path, ids: tuple[str, str]) -> None:
    source = read(tmp_path, *(image(id_=id_, name=f"{n}.jpg") for n, id_ in enumerate(ids)))
    assert [(one.image_id, one.file_name) for one in source.images] == [(1, "0.jpg"), (2, "1.jpg")]
    assert source.repairs == {"image ids missing or there twice, counted from 1 instead": 2}


def test_labels_that_are_not_listed(tmp_path: Path) -> None:
    source = read(tmp_path, image(BOX, BOX.replace("cat", "ant")), labels="")
    assert [one.name for one in source.categories] == ["ant", "cat"]
    with pytest.raises(DataError, match="has no <labels> and no usable box"):
        read(tmp_path, image(), labels="")


def test_tags_are_no_objects(tmp_path: Path) -> None:
    source = read(tmp_path, image(BOX, '<tag label="cat"/>'))
    assert source.annotated == 1
    assert source.passed_over == {"a tag of a whole picture, which is no object": 1}


def test_an_image_keeps_its_id_and_classes_in_every_split(tmp_path: Path) -> None:
    read(tmp_path, image(BOX, id_=""), image(id_="", name="b.jpg"), labels="")
    uri = f"{tmp_path}/annotations.xml"
    source = cvat.read_cvat(uri, str(tmp_path), lambda name: name == "b.jpg")
    assert [(one.image_id, one.file_name) for one in source.images] == [(2, "b.jpg")]
    assert [one.name for one in source.categories] == ["cat"]
    assert (source.listed, source.annotated) == (1, 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not valid XML"),
        ("<annotations><image></annotations>", "not valid XML"),
        ("<annotations/>", "has no <image>; there is nothing to prepare"),
        ("<annotation/>", "it begins with <annotation>, not <annotations>"),
        (
            '<annotations><track id="0"><box frame="0"/></track></annotations>',
            "'CVAT for video', whose <track>s are not read; export it as 'CVAT for images 1.1'",
        ),
        (
            '<!DOCTYPE a [<!ENTITY a "1234567890"><!ENTITY b "'
            + "&a;" * 9
            + '">'
            + "".join(
                f'<!ENTITY {chr(n)} "{f"&{chr(n - 1)};" * 9}">' for n in range(ord("c"), ord("l"))
            )
            + "]><annotations><image>&k;</image></annotations>",
            "not valid XML",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(DataError) as refused:
        cvat.read_cvat(f"{tmp_path}/a.xml", str(tmp_path))
    assert why in str(refused.value) and str(refused.value).startswith(f"{tmp_path}/a.xml: ")


def test_other_shapes_are_one_reason(tmp_path: Path) -> None:
    shapes = ('<points label="cat" points="1,2"/>', '<polyline label="cat" points="1,2;3,4"/>')
    source = read(tmp_path, image(BOX, *shapes))
    assert len({entry.why for entry in source.quarantined}) == 1
    assert [entry.detail for entry in source.quarantined] == ["points", "polyline"]
