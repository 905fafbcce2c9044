"""Every export that a tool writes is recognised, as a folder and as a zip."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from cluster.errors import DataError, UsageError
from cluster.formats.layout import Set, find_set

COCO = '{"info": {}, "images": [], "annotations": [], "categories": []}'
CVAT = '<?xml version="1.0"?>\n<!-- <a> -->\n<annotations><image id="0"/></annotations>'
VOC = "<annotation><filename>a.jpg</filename></annotation>"
TASKS = '[{"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": []}]'
BOXES = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,9,9,cat,1,2,3,4\n"
OPENIMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n"
LABEL = "0 0.5 0.5 0.5 0.5\n"
# The names of the exports of each tool, with the format, the annotations and the pictures.
ONE_SET: dict[str, tuple[dict[str, str], tuple[str, str, str]]] = {
    "roboflow coco": (
        {"README.roboflow.txt": "hi", "train/_annotations.coco.json": COCO, "train/a.jpg": ""},
        ("coco", "train/_annotations.coco.json", "train"),
    ),
    "roboflow voc": (
        {"README.dataset.txt": "hi", "train/a.xml": VOC, "train/a.jpg": ""},
        ("voc", "train", "train"),
    ),
    "roboflow yolo": (
        {
            "data.yaml": "names: [cat]",
            "README.dataset.txt": "hi",
            "train/labels/a.txt": LABEL,
            "train/images/a.jpg": "",
        },
        ("yolo", "train/labels", "train/images"),
    ),
    "cvat": ({"annotations.xml": CVAT, "images/a.jpg": ""}, ("cvat", "annotations.xml", "images")),
    "cvat coco": (
        {"annotations/instances_default.json": COCO, "images/default/a.jpg": ""},
        ("coco", "annotations/instances_default.json", "images/default"),
    ),
    "cvat yolo": (
        {
            "obj.names": "cat\n",
            "obj.data": "classes = 1\n",
            "train.txt": "data/obj_train_data/a.jpg\n",
            "obj_train_data/a.txt": LABEL,
            "obj_train_data/day/b.txt": LABEL,
            "obj_train_data/a.jpg": "",
            "obj_train_data/day/b.jpg": "",
        },
        ("yolo", "obj_train_data", "obj_train_data"),
    ),
    "cvat voc": (
        {
            "labelmap.txt": "cat:1,2,3::\n",
            "ImageSets/Main/default.txt": "a\n",
            "Annotations/day/a.xml": VOC,
            "JPEGImages/day/a.jpg": "",
            "SegmentationObject/day/a.png": "",
        },
        ("voc", "Annotations", "JPEGImages"),
    ),
    "label studio coco": (
        {"result.json": COCO, "images/ab12cd34-a.jpg": ""},
        ("coco", "result.json", "images"),
    ),
    "label studio yolo": (
        {
            "classes.txt": "cat\n",
            "notes.json": '{"categories": [{"id": 0, "name": "cat"}], "info": {}}',
            "labels/a.txt": LABEL,
            "images/a.jpg": "",
        },
        ("yolo", "labels", "images"),
    ),
    "label studio voc": (
        {"Annotations/a.xml": VOC, "images/a.jpg": ""},
        ("voc", "Annotations", "images"),
    ),
    "label studio json": (
        {"project-1.json": TASKS, "pictures/a.jpg": ""},
        ("labelstudio", "project-1.json", "."),
    ),
    "ultralytics": (
        {"data.yaml": "", "labels/train/a.txt": LABEL, "images/train/a.jpg": ""},
        ("yolo", "labels/train", "images/train"),
    ),
    "roboflow csv": (
        {"README.txt": "hi", "train/_annotations.csv": BOXES, "train/a.jpg": ""},
        ("csv", "train/_annotations.csv", "train"),
    ),
    "openimages": (
        {
            "validation-annotations-bbox.csv": OPENIMAGES,
            "class-descriptions-boxable.csv": "/m/1,cat\n",
            "image-ids.csv": "ImageID,Subset,OriginalURL,License\n",
            "validation/a.jpg": "",
        },
        ("openimages", "validation-annotations-bbox.csv", "."),
    ),
    "coco 2017": (
        {
            "annotations/instances_val2017.json": COCO,
            "annotations/captions_val2017.json": COCO,
            "val2017/a.jpg": "",
        },
        ("coco", "annotations/instances_val2017.json", "val2017"),
    ),
}


def write(names: dict[str, str], target: Path) -> str:
    """A folder, or a zip where `target` is named like one."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as packed:
            for name, text in names.items():
                packed.writestr(name, text)
        return str(target)
    for name, text in names.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    return str(target)


@pytest.mark.parametrize("name", ["export", "export.zip"])
@pytest.mark.parametrize("wrapped", ["", "pets/"])
@pytest.mark.parametrize("tool", ONE_SET)
def test_an_export_is_one_argument(tmp_path: Path, tool: str, wrapped: str, name: str) -> None:
    names, (format_, annotations, images) = ONE_SET[tool]
    names = {wrapped + name: text for name, text in names.items()}
    names[f"__MACOSX/{wrapped}._a.jpg"] = names[f"{wrapped}.DS_Store"] = "x"
    root = write(names, tmp_path / name)
    found, said = find_set(root, None, None)
    expected = [f"{root}/{wrapped}{part}".removesuffix("/.") for part in (annotations, images)]
    assert [found.format, found.annotations, found.images] == [format_, *expected]
    assert said.startswith(f"{root}: ") and "pictures in" in said


SPLITS = ("train", "valid", "test")
SEVERAL: dict[str, tuple[dict[str, str], list[str]]] = {
    "roboflow coco": (
        {
            f"{s}/{n}": t
            for s in SPLITS
            for n, t in [("_annotations.coco.json", COCO), ("a.jpg", "")]
        },
        ["test", "train", "valid"],
    ),
    "roboflow csv": (
        {f"{s}/{n}": t for s in SPLITS for n, t in [("_annotations.csv", BOXES), ("a.jpg", "")]},
        ["test", "train", "valid"],
    ),
    "roboflow voc": (
        {f"{s}/a.{suffix}": VOC for s in SPLITS for suffix in ("xml", "jpg")},
        ["test", "train", "valid"],
    ),
    "roboflow yolo": (
        {
            "data.yaml": "names: [cat]",
            **{f"{s}/{n}": LABEL for s in SPLITS for n in ("labels/a.txt", "images/a.jpg")},
        },
        ["test", "train", "valid"],
    ),
    "ultralytics": (
        {f"{n}": LABEL for s in SPLITS for n in (f"labels/{s}/a.txt", f"images/{s}/a.jpg")},
        ["labels/test", "labels/train", "labels/valid"],
    ),
    "coco 2017": (
        {
            n: COCO
            for s in ("train2017", "val2017")
            for n in (f"annotations/instances_{s}.json", f"{s}/a.jpg")
        },
        ["annotations/instances_train2017.json", "annotations/instances_val2017.json"],
    ),
    "cvat subsets": (
        {
            n: LABEL
            for s in ("train", "valid")
            for n in (f"obj_{s}_data/a.txt", f"obj_{s}_data/a.jpg")
        },
        ["obj_train_data", "obj_valid_data"],
    ),
}


@pytest.mark.parametrize("name", ["export", "export.zip"])
@pytest.mark.parametrize("tool", SEVERAL)
def test_of_several_sets_one_is_named(tmp_path: Path, tool: str, name: str) -> None:
    names, parts = SEVERAL[tool]
    root = write(names, tmp_path / name)
    with pytest.raises(UsageError) as refused:
        find_set(root, None, None)
    assert str(refused.value) == (
        f"--annotations {root}: holds {len(parts)} sets: {', '.join(parts)}; give one of them:"
        f" --annotations {root}/{parts[0]}"
    )
    # The remedy works, for each of them.
    found = [find_set(f"{root}/{part}", None, None)[0] for part in parts]
    assert (
        len({one.annotations for one in found}) == len({one.images for one in found}) == len(parts)
    )
    for part, one in zip(parts, found, strict=True):
        assert one.annotations.startswith(f"{root}/{part}")


def test_what_is_given_is_heeded(tmp_path: Path) -> None:
    names = {"a.json": COCO, "Annotations/a.xml": VOC, "images/a.jpg": "", "small/a.jpg": ""}
    root = write(names, tmp_path / "both.zip")
    with pytest.raises(UsageError, match="several formats; choose one: --format coco or voc"):
        find_set(root, None, None)
    assert find_set(root, None, "voc")[0] == Set("voc", f"{root}/Annotations", f"{root}/images")
    assert find_set(root, f"{root}/small", "coco")[0] == Set(
        "coco", f"{root}/a.json", f"{root}/small"
    )
    with pytest.raises(
        UsageError,
        match=r"--format yolo: .*zip has annotations of another format; say --format coco",
    ):
        find_set(root, None, "yolo")


def test_labels_whose_pictures_lie_elsewhere(tmp_path: Path) -> None:
    names = {"classes.txt": "cat", "README.txt": "hi", "labels/a.txt": LABEL}
    root = write(names, tmp_path / "labels.zip")
    pictures = write({"a.jpg": ""}, tmp_path / "photos")
    assert find_set(root, pictures, None)[0] == Set("yolo", f"{root}/labels", pictures)
    with pytest.raises(DataError, match=r"no pictures .* \(it has 3 x \.txt\)"):
        find_set(root, None, None)


def test_a_set_without_annotations_is_refused(tmp_path: Path) -> None:
    root = write({"a.jpg": "", "b.JPG": "", "notes.json": "{}"}, tmp_path / "photos")
    with pytest.raises(DataError, match=r"no annotations are recognised .*2 x \.jpg, 1 x \.json"):
        find_set(root, None, None)


def test_a_file_alone_needs_its_pictures(tmp_path: Path) -> None:
    write({"all.json": COCO, "photos/a.jpg": ""}, tmp_path)
    with pytest.raises(
        UsageError, match="is a file; name the folder of its pictures with --images"
    ):
        find_set(f"{tmp_path}/all.json", None, None)
    with pytest.raises(UsageError, match="there is no such file or folder"):
        find_set(f"{tmp_path}/other.zip/train", None, None)


@pytest.mark.parametrize("name", ["export", "export.zip"])
@pytest.mark.parametrize(
    ("file", "text", "format_"),
    [("_annotations.coco.json", COCO, "coco"), ("_annotations.csv", BOXES, "csv")],
)
def test_the_pictures_of_a_file_may_lie_beside_it(
    tmp_path: Path, file: str, text: str, format_: str, name: str
) -> None:
    root = write({f"train/{file}": text, "train/a.jpg": "", "b.jpg": ""}, tmp_path / name)
    found, said = find_set(f"{root}/train/{file}", None, None)
    assert found == Set(format_, f"{root}/train/{file}", f"{root}/train")  # pyright: ignore
    assert said == f"{root}/train/{file}: format {format_}, pictures in {root}/train"


def test_a_table_counts_where_no_other_annotations_are(tmp_path: Path) -> None:
    names = {"all.json": COCO, "boxes.csv": BOXES, "notes.csv": "a,b,c\n", "images/a.jpg": ""}
    root = write(names, tmp_path / "both")
    assert find_set(root, None, None)[0].format == "coco"
    assert find_set(root, None, "csv")[0] == Set("csv", f"{root}/boxes.csv", f"{root}/images")
    with pytest.raises(UsageError, match="another format; say --format coco"):
        find_set(root, None, "openimages")


@pytest.mark.parametrize("images", [None, "photos"])
def test_a_file_that_is_no_annotation_is_named_before_its_pictures_are_asked_for(
    tmp_path: Path, images: str | None
) -> None:
    write({"photos/a.jpg": "", "a.yaml": "names: [cat]"}, tmp_path)
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "photos", "photos")
    pictures = images and str(tmp_path / images)
    with pytest.raises(UsageError, match="^--annotations .*: is a tar archive; unpack it and name"):
        find_set(f"{tmp_path}/set.tar.gz", pictures, None)
    with pytest.raises(UsageError, match="is a YAML file; name the folder of the labels"):
        find_set(f"{tmp_path}/a.yaml", pictures, None)
