"""Names that are paths of another machine, in every format that gives names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.formats.kinds import Format
from cluster.prepare.file_names import FROM_ELSEWHERE, find_files
from cluster.prepare.listing import NOT_BELOW
from cluster.prepare.plan import Options, Plan, plan_shards
from tests.support.painted_sets import PaintedImage, PaintedObject, write_set

OBJECTS = (PaintedObject(0, (2, 2, 10, 10), (255, 0, 0)),)
NAMES = ("a.png", "sub/b.png", "sub/c.png")
ROOTS = ("/home/me/pets/", "C:\\pets\\", "../pets/", "\\\\server\\pets\\")


def planned(folder: Path, format: Format, root: str, *, gone: str | None = None) -> Plan:
    """A set whose annotations give each name behind a root; the file of `gone` is deleted."""
    images = [PaintedImage(name, 2, 3, OBJECTS) for name in NAMES]
    source = write_set(folder, images, format)
    path = Path(source.annotations)
    for file in path.rglob("*.xml") if path.is_dir() else [path]:
        text = file.read_text()
        for name in NAMES:
            given = root + name.replace("/", "\\" if "\\" in root else "/")
            given = given.replace("\\", "\\\\") if format == "coco" else given
            text = re.sub(rf"(?<![\w/]){name}", lambda _, given=given: given, text)
        file.write_text(text)
    if gone is not None:
        (folder / "images" / gone).unlink()
    return plan_shards([source], output=None, options=Options(max_quarantined=1))


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("format", ["coco", "voc", "cvat", "csv"])
def test_a_path_of_another_machine_is_matched_by_its_end(
    tmp_path: Path, format: Format, root: str
) -> None:
    plan = planned(tmp_path, format, root)
    assert sorted(plan.images.names) == sorted(NAMES)
    assert plan.quarantined == () and plan.passed_over == {}
    said = "pictures found by the name of their XML file, whose filename fits none"
    repairs = {what: count for what, count in plan.repairs.items() if "area" not in what}
    assert repairs == {said if format == "voc" else FROM_ELSEWHERE: len(NAMES)}


@pytest.mark.parametrize("root", ROOTS)
def test_each_path_is_matched_alone(tmp_path: Path, root: str) -> None:
    """One picture that is gone does not cost the others."""
    plan = planned(tmp_path, "coco", root, gone="sub/c.png")
    (entry,) = plan.quarantined
    assert entry.why == NOT_BELOW and entry.where.endswith("pets/sub/c.png")
    assert plan.repairs[FROM_ELSEWHERE] == len(plan.cuts[0]) == 2


def test_a_file_outside_of_the_folder_is_never_taken(tmp_path: Path) -> None:
    for number, root in enumerate([f"{tmp_path}/", "../", "a/../../../"]):
        for secret in (tmp_path / "a.png", tmp_path / str(number) / "a.png"):
            secret.parent.mkdir(exist_ok=True)
            secret.write_bytes(b"secret")
        plan = planned(tmp_path / str(number), "coco", root, gone="a.png")
        taken = [plan.images.names[i] for cut in plan.cuts for i in cut]
        assert sorted(taken) == ["sub/b.png", "sub/c.png"]
        (entry,) = plan.quarantined
        assert entry.why == NOT_BELOW and entry.where.endswith("/a.png")


def test_a_name_takes_its_file_before_a_path() -> None:
    found = find_files(["a.jpg"], ["data/a.jpg", "data/b.jpg"], ["a.jpg", "b.jpg"])
    assert found.names == {"a.jpg": "a.jpg"} and found.paths == {"data/b.jpg": "b.jpg"}
    assert found.near == {"data/a.jpg": "a.jpg"} and found.said == {FROM_ELSEWHERE: 1}


def test_a_name_that_differs_in_case_alone_is_a_hint() -> None:
    found = find_files(["A.PNG", "B.PNG"], ["data/B.png"], ["a.png", "b.png"])
    assert found.names == found.paths == {}
    assert found.near == {"A.PNG": "a.png", "B.PNG": "b.png", "data/B.png": "b.png"}


def test_a_name_of_two_subsets_of_cvat_is_two_files(tmp_path: Path) -> None:
    """From the export of a project to the pictures that are read."""
    names = ["Train/a.png", "Train/b.png", "Val/a.png"]
    images = [PaintedImage(name, 2, 3, OBJECTS) for name in names]
    source = write_set(tmp_path, images, "cvat")
    path = Path(source.annotations)
    path.write_text(re.sub(r'name="(Train|Val)/', r'subset="\1" name="', path.read_text()))
    plan = plan_shards([source], output=None, options=Options())
    assert sorted(plan.images.names) == names
    assert plan.quarantined == () and plan.repairs == {} and len(plan.cuts[0]) == 3
