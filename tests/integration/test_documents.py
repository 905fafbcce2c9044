"""The README and the documents are a test: their commands are run as they are typed, with relative
paths, in a folder that is not the checkout, and then all of them once more.

Settings that make the work tiny come from the environment. A verb that needs Ray is run in this
process, from its file on, so that all share one cluster; everything else is run by a shell. A block
that cannot be run has a comment before it, `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from PIL import Image

import pipelines.__main__
from tests.support.documents import ROOT, Block, blocks, documents
from tests.support.parquet_sets import row, write
from tests.support.ray_head import RayHead

pytestmark = [
    pytest.mark.integration,
    # A Ray that a busy machine did not start in time is started again and leaves open files behind.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TINY = {
    "RETINARAY_CANVAS__HEIGHT": "64",
    "RETINARAY_CANVAS__WIDTH": "96",
    "RETINARAY_MODEL__WIDTH": "64",
    "RETINARAY_TRAINING__EPOCHS": "1",
    "RETINARAY_TRAINING__EVALUATE_EVERY": "1",
    # Without a process of its own that imports torch.
    "RETINARAY_TRAINING__EVALUATION": "between",
    # Few steps: most of the time is starts of processes.
    "RETINARAY_TRAINING__BATCH_SIZE": "24",
    "RETINARAY_TRAINING__WORKERS": "1",
    "RETINARAY_TRAINING__LOG_SECONDS": "60",
    "RETINARAY_SWEEP__TRIALS": "1",
    "RETINARAY_SWEEP__EPOCHS": "1",
    "RETINARAY_SWEEP__GRACE_EPOCHS": "1",
    "RETINARAY_WORKERS": "1",
    "RETINARAY_OVERLAYS": "1",
}
SHELL = (
    "source",
    "export",
    "python",
    "retinaray",
    "mlflow",
    "ray",
    "MLFLOW_TRACKING_URI=sqlite:///runs/mlflow.db",
)
"""First words of the commands that this test knows how to run."""
AGAIN = {
    "prepare": "already there",
    # It prints the result alone, without a line of progress.
    "train": r"(?s)\A(?!.*img/s)",
    "sweep": "this sweep is finished",
    "register": "already holds this checkpoint",
    "run": r"(?s)\[train\] reused.*\[predict\] reused",
}
"""A pattern of what a verb says when its work is there already; the other verbs do theirs again."""
REASONS = {
    "CONTRIBUTING.md": 1,
    "README.md": 2,
    "docs/benchmarks.md": 1,
    "docs/tutorial.md": 1,
    "docs/how-to/trained-weights.md": 1,
    "docs/how-to/s3.md": 1,
    "docs/how-to/ray-cluster.md": 5,
    "docs/how-to/sweep.md": 1,
    "docs/how-to/promote.md": 1,
    "docs/how-to/mlflow.md": 1,
}
"""How many blocks of a document are not run."""

ALL = [block for path in documents() for block in blocks(path)]
SH = [block for block in ALL if block.language == "sh"]


@dataclass
class Desk:
    """Where a user types: a folder, and what the shell knows."""

    folder: Path
    environment: dict[str, str]
    said: dict[str, str] = field(default_factory=dict)
    """What each command printed the last time."""

    def type(self, command: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        words = shlex.split(command)
        if words[0] == "retinaray" and words[1] != "shards":
            return self.here(words)
        done = subprocess.run(
            ["bash", "-c", f"{command}\nstatus=$?; env -0 > environment; exit $status"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if words[0] in ("source", "export"):
            lines = (self.folder / "environment").read_text().split("\0")
            self.environment = dict(line.split("=", 1) for line in lines if line)
        return done.returncode, done.stdout

    def here(self, words: list[str]) -> tuple[int, str]:
        """A verb in this process, connected to the shared cluster."""
        said, argv = io.StringIO(), sys.argv
        sys.argv = words
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                pipelines.__main__.main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
        finally:
            sys.argv = argv
        return 0, said.getvalue()


def verb_of(command: str) -> str | None:
    verb = re.match(r"retinaray (\w+)", command)
    return verb[1] if verb else None


@pytest.fixture(scope="module")
def desk(
    s3: str, ray_cluster: str, small_coco: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """A folder with what the documents' commands name, and the shell of a user in it."""
    import boto3

    folder = tmp_path_factory.mktemp("desk")
    place_data(folder, small_coco)
    # `source .venv/bin/activate` is typed in the checkout.
    (folder / ".venv").symlink_to(Path(sys.prefix))
    boto3.client("s3").create_bucket(Bucket="cells")
    for split in ("train", "val"):
        upload(small_coco / f"annotations/instances_{split}.json", f"raw/instances_{split}.json")
        for image in (small_coco / "images" / split).iterdir():
            upload(image, f"raw/{split}/{image.name}")
    before, where = dict(os.environ), Path.cwd()
    os.environ.update(TINY, MLFLOW=f"sqlite:///{folder}/mlflow-of-jobs.db")
    os.chdir(folder)
    yield Desk(folder, environment())
    os.chdir(where)
    os.environ.clear()
    os.environ.update(before)


def environment() -> dict[str, str]:
    """Without what conftest sets for the shared cluster. Where .venv belongs to another checkout,
    as in a git worktree, this one comes first.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "PYTHONPATH"))
    }
    probe = "import cluster; print(next(iter(cluster.__path__)))"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd="/", env=kept, capture_output=True, text=True
    )
    if done.stdout.strip() != str(ROOT / "cluster"):
        kept["PYTHONPATH"] = str(ROOT)
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0"}


def upload(path: Path, key: str) -> None:
    import boto3

    boto3.client("s3").upload_file(str(path), "cells", key)


def place_data(folder: Path, coco: Path) -> None:
    """A folder for each format, and a weight file. The tutorial makes coco/."""
    from safetensors.torch import save_file

    from detector.model import RetinaNet

    annotations = json.loads((coco / "annotations/instances_val.json").read_text())
    (folder / "street").mkdir()
    (folder / "street/instances.json").write_text(json.dumps(annotations))
    shutil.copytree(coco / "images/val", folder / "street/images")
    write_voc(folder / "voc", coco, annotations)
    write_yolo(folder / "yolo", coco, annotations)
    write_tables(folder, coco, annotations)
    write_zips(folder, coco, annotations)
    (folder / "weights").mkdir()
    # As small_r18.yaml builds it.
    start = RetinaNet(classes=1, backbone="resnet18", width=64, head_norm="group")
    weights = {name: value.contiguous() for name, value in start.state_dict().items()}
    save_file(weights, str(folder / "weights/model.safetensors"))


def boxes_of(annotations: dict, image: dict) -> list[tuple[str, list[float]]]:
    """(class name, [x, y, width, height]) of the objects of one image."""
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    return [
        (names[one["category_id"]], one["bbox"])
        for one in annotations["annotations"]
        if one["image_id"] == image["id"] and not one["iscrowd"]
    ]


def write_zips(folder: Path, coco: Path, annotations: dict) -> None:
    """Label Studio's export in COCO's form, and Roboflow's with two splits."""
    pictures = list((coco / "images/val").iterdir())
    with zipfile.ZipFile(folder / "labelled.zip", "w") as packed:
        packed.writestr("result.json", json.dumps(annotations))
        for picture in pictures:
            packed.write(picture, f"images/{picture.name}")
    with zipfile.ZipFile(folder / "pets.v2i.coco.zip", "w") as packed:
        for split in ("train", "valid"):
            packed.writestr(f"{split}/_annotations.coco.json", json.dumps(annotations))
            for picture in pictures:
                packed.write(picture, f"{split}/{picture.name}")


def write_voc(folder: Path, coco: Path, annotations: dict) -> None:
    """VOC's folders: JPEGImages, and in Annotations one XML file an image."""
    (folder / "Annotations").mkdir(parents=True)
    shutil.copytree(coco / "images/val", folder / "JPEGImages")
    for image in annotations["images"]:
        things = "".join(
            f"<object><name>{escape(name)}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for name, (x, y, w, h) in boxes_of(annotations, image)
        )
        name = Path(image["file_name"])
        (folder / f"Annotations/{name.stem}.xml").write_text(
            f"<annotation><filename>{name}</filename>{things}</annotation>"
        )


def write_yolo(folder: Path, coco: Path, annotations: dict) -> None:
    """YOLO's folders: images, and in labels one text file an image, with classes.txt."""
    (folder / "labels").mkdir(parents=True)
    shutil.copytree(coco / "images/val", folder / "images")
    classes = [category["name"] for category in annotations["categories"]]
    (folder / "labels/classes.txt").write_text("\n".join(classes) + "\n")
    for image in annotations["images"]:
        name = Path(image["file_name"])
        width, height = Image.open(coco / "images/val" / name).size
        lines = [
            f"{classes.index(label)} {(x + w / 2) / width} {(y + h / 2) / height}"
            f" {w / width} {h / height}\n"
            for label, (x, y, w, h) in boxes_of(annotations, image)
        ]
        (folder / f"labels/{name.stem}.txt").write_text("".join(lines))


def write_tables(folder: Path, coco: Path, annotations: dict) -> None:
    """openimages/, csv/ and parquet/, each with all images and boxes."""
    for name in ("openimages", "csv"):
        shutil.copytree(coco / "images/val", folder / name / "images")
    shares, corners, rows = ["ImageID,LabelName,XMin,XMax,YMin,YMax"], [], []
    for image in annotations["images"]:
        name, objects = image["file_name"], boxes_of(annotations, image)
        width, height = Image.open(coco / "images/val" / name).size
        for label, (x, y, w, h) in objects:
            sides = f"{x / width},{(x + w) / width},{y / height},{(y + h) / height}"
            shares.append(f"{Path(name).stem},{label},{sides}")
            corners.append(f"{name},{label},{x},{y},{x + w},{y + h}")
        picture = {"bytes": (coco / "images/val" / name).read_bytes(), "path": name}
        boxes = {"bbox": [box for _, box in objects], "category": [one for one, _ in objects]}
        rows.append(row(image["id"], image=picture, width=width, height=height, objects=boxes))
    (folder / "openimages/boxes.csv").write_text("\n".join(shares))
    (folder / "csv/boxes.csv").write_text(
        "\n".join(["filename,class,xmin,ymin,xmax,ymax", *corners])
    )
    write(folder / "parquet/train-00000-of-00001.parquet", rows, names=None)


def commands(*, submitted: bool) -> list[tuple[str, str]]:
    """(block, command) of all blocks that are run, each command once; `submitted` are those for a
    Ray cluster. The tutorial comes first: it makes the pictures that the others use.
    """
    order = ["docs/tutorial.md", "README.md", "docs/how-to/your-data.md"]
    run = [block for block in SH if block.not_run is None]
    run.sort(key=lambda b: order.index(b.document) if b.document in order else len(order))
    found: dict[str, str] = {}
    for block in run:
        for command in block.commands():
            if command.startswith("ray job") is submitted:
                found.setdefault(command, block.name)
    return [(name, command) for command, name in found.items()]


def write_files_that_the_documents_show(folder: Path) -> None:
    """A block of YAML whose first line is `# NAME` is a file that the reader saves."""
    for block in ALL:
        name = re.match(r"# (\w+\.yaml)\n", block.text) if block.language == "yaml" else None
        if name:
            (folder / name[1]).write_text(block.text)


def test_every_block_is_run_or_says_why_not():
    unknown = [
        f"{block.name}: {command}"
        for block in SH
        if block.not_run is None
        for command in block.commands()
        if command.split()[0] not in SHELL
    ]
    assert not unknown, "mark the block `<!-- not run: REASON -->`:\n" + "\n".join(unknown)
    left_out: dict[str, list[Block]] = {}
    for block in SH:
        if block.not_run is not None:
            left_out.setdefault(block.document, []).append(block)
    assert {name: len(found) for name, found in left_out.items()} == REASONS


@pytest.mark.parametrize("time", ["the first time", "again"])
def test_commands_run_as_they_are_typed(desk: Desk, time: str) -> None:
    write_files_that_the_documents_show(desk.folder)
    wrong = []
    for name, command in commands(submitted=False):
        code, said = desk.type(command)
        verb = verb_of(command)
        expected = AGAIN.get(verb or "") if time == "again" and "--check" not in command else None
        if code or (expected and not re.search(expected, said)):
            wanted = f", and to match {expected!r}" if expected else ""
            wrong.append(f"{name}: {command}\nwas to end with 0{wanted}: {code}\n{said[-2000:]}")
    assert not wrong, "\n\n".join(wrong)


def test_a_verb_runs_in_a_shell_from_another_folder(desk: Desk) -> None:
    code, said = desk.type("source .venv/bin/activate && retinaray train --help")
    assert code == 0 and "usage: retinaray train" in said, said


def test_python_blocks_run(desk: Desk) -> None:
    for block in ALL:
        if block.language == "python" and block.not_run is None:
            done = subprocess.run(
                [sys.executable, "-c", block.text],
                cwd=desk.folder,
                env=desk.environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{block.name}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def head(desk: Desk) -> Iterator[RayHead]:
    # The nodes need the settings and the credentials in the environment of `ray start`.
    with RayHead(desk.environment) as head:
        yield head


def test_a_submitted_job_runs_as_it_is_typed(desk: Desk, head: RayHead, tmp_path: Path) -> None:
    # "In the checkout": a copy of its code, so that nothing is written there.
    for floor in ("detector", "cluster", "tune", "pipelines"):
        shutil.copytree(ROOT / floor, tmp_path / floor)
    there = Desk(tmp_path, {**desk.environment, **head.environment})
    for name, command in commands(submitted=True):
        for _ in range(2):
            head.wait_until_up()
            code, said = there.type(command)
            assert code == 0, f"{name}: {command}\n{said[-3000:]}"


def test_no_job_is_started_without_the_token(desk: Desk, head: RayHead, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    stranger = {**desk.environment, **head.environment, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    code, _ = Desk(tmp_path, stranger).type(f"ray job submit -- touch {tmp_path}/started")
    assert code != 0
    assert not (tmp_path / "started").exists()
