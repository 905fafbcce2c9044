"""Which image goes into which shard, and what is refused before any image is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import DataError, UsageError
from cluster.formats.read import SourcePaths
from cluster.prepare.plan import Options, cut_shards, plan_shards
from cluster.shards import quarantine
from cluster.storage import files
from tests.support.pictures import jpeg, noise, write_coco
from tests.support.preparing import (
    jobs_of,
    plan_coco,
)


def test_the_seed_gives_the_order(small_coco: Path, tmp_path: Path) -> None:
    def order(seed: int) -> list[int]:
        return [
            image.image_id
            for job in jobs_of(plan_coco(str(small_coco), str(tmp_path), seed=seed))
            for image in job.images
        ]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


def test_cutting_by_size() -> None:
    cuts = cut_shards([40, 40, 40, 40, 40, 40], seed=0, shard_bytes=100)
    assert [len(cut) for cut in cuts] == [2, 2, 2]
    # One file larger than a shard stands alone.
    assert [len(cut) for cut in cut_shards([500, 500, 500], seed=0, shard_bytes=100)] == [1, 1, 1]
    assert cut_shards([], seed=0, shard_bytes=100) == []


def test_blocks_stay_together_and_are_mixed_inside_a_shard() -> None:
    # Twelve blocks of five; a shard holds four blocks.
    blocks_I = np.arange(60) // 5
    cuts = cut_shards([10] * 60, seed=0, shard_bytes=200, blocks_I=blocks_I)
    assert sorted(position for cut in cuts for position in cut) == list(range(60))
    of_cuts = [[int(blocks_I[position]) for position in cut] for cut in cuts]
    assert [len(set(blocks)) for blocks in of_cuts] == [4, 4, 4]
    assert all(blocks != sorted(blocks) for blocks in of_cuts)
    assert cuts == cut_shards([10] * 60, seed=0, shard_bytes=200, blocks_I=blocks_I + 7)


def test_blocks_of_one_change_nothing() -> None:
    sizes = list(range(1, 40))
    assert cut_shards(sizes, seed=3, shard_bytes=99) == cut_shards(
        sizes, seed=3, shard_bytes=99, blocks_I=np.arange(39)
    )


def test_missing_images_are_refused_before_any_work(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": None, "b.jpg": None})
    with pytest.raises(
        DataError,
        match=(
            r"2 of 2 images had to be left out, none is left: 2 x the file is not in the images"
            r" folder, such as a.jpg"
        ),
    ):
        plan_coco(folder, str(tmp_path / "out"), max_quarantined=1.0)
    assert len(quarantine.read_quarantine(str(tmp_path / "out"))) == 2


@pytest.mark.parametrize("bad", [28, 29, 30])
def test_a_share_allows_whole_records(tmp_path: Path, bad: int) -> None:
    # 29 % of 100 are 29, though 0.29 * 100 is 28.999999999999996 in floating point.
    folder = write_coco(
        tmp_path / "coco", {f"{n:02}.jpg": None if n < bad else b"x" for n in range(100)}
    )
    if bad <= 29:
        assert (
            len(plan_coco(folder, str(tmp_path / "out"), max_quarantined=0.29).quarantined) == bad
        )
    else:
        with pytest.raises(
            DataError, match="30 of 100 images had to be left out, --max_quarantined 0.29 allows 29"
        ):
            plan_coco(folder, str(tmp_path / "out"), max_quarantined=0.29)


def test_missing_paths_are_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": b"x"})
    monkeypatch.setattr(files, "open_input", None)
    with pytest.raises(UsageError, match="nowhere: there is no such file or folder"):
        plan_coco(folder, str(tmp_path / "out"), against=(str(tmp_path / "nowhere"),))
    Path(f"{folder}/images").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="images/train: there is no such file or folder"):
        plan_coco(folder, str(tmp_path / "out"))


def test_a_file_is_no_folder_and_a_folder_no_file(small_coco: Path, tmp_path: Path) -> None:
    annotations, images = (
        str(small_coco / "annotations/instances_train.json"),
        str(small_coco / "images/train"),
    )
    a_picture = str(next(Path(images).iterdir()))
    for kind, labels, pictures, said in (
        (
            "coco",
            annotations,
            a_picture,
            f"--images {a_picture}: is a file, but the images are in a folder",
        ),
        (
            "coco",
            images,
            images,
            f"{images}: is a folder, but annotations of format coco are a COCO JSON file",
        ),
        ("voc", a_picture, images, "is a file, but annotations of format voc are a folder"),
        ("yolo", a_picture, images, "is a file, but annotations of format yolo are a folder"),
        ("yolo", annotations, images, "is a COCO JSON file, but .*; say --format coco"),
    ):
        source = SourcePaths("a", kind, labels, pictures)
        with pytest.raises(UsageError, match=said):
            plan_shards([source], output=str(tmp_path / "out"), options=Options())
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="dangling is a link to .*nowhere, which does not exist"):
        plan_coco(str(small_coco), str(tmp_path / "dangling/out"))


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("no_objects", {"annotations": []}),
        ("only_crowds", {"iscrowd": 1}),
        ("boxes_as_shares", {"bbox": [0.1, 0.2, 0.3, 0.4]}),
        # 25 + 29 leaves the 30 px of the picture; as a corner it does not.
        ("box_order", {"bbox": [25, 3, 29, 15]}),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_unless_that_is_accepted(
    tmp_path: Path, fault: str, change: dict[str, Any]
) -> None:
    folder = write_coco(tmp_path, {f"{n}.jpg": jpeg(noise(20, 30)) for n in range(4)})
    annotations = Path(folder, "annotations/instances_train.json")
    content = json.loads(annotations.read_text())
    for one in content["annotations"]:
        one.update(change)
    content.update({"annotations": []} if fault == "no_objects" else {})
    annotations.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=f"[;?] where that is meant, say --accept {fault}$"
    ) as refused:
        plan_coco(folder, str(tmp_path / "out"))
    assert "?;" not in str(refused.value)
    assert not (tmp_path / "out/index.json").exists()
    plan = plan_coco(folder, str(tmp_path / "out"), accept=(fault,))
    assert [finding.fault for finding in plan.findings] == [fault]


@pytest.mark.parametrize("name", ["shard-00007-of-00009.parquet", "report.html"])
def test_files_of_somebody_else_are_not_written_over(tmp_path: Path, name: str) -> None:
    folder = write_coco(tmp_path / "coco", {"a.jpg": jpeg(noise(20, 30))})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(UsageError, match=f"mine: has {name}, a name that is written there, but no"):
        plan_coco(folder, str(tmp_path / "mine"))
    # What an interrupted prepare leaves is its own.
    (tmp_path / "mine/.progress").mkdir()
    assert plan_coco(folder, str(tmp_path / "mine")).finished is None
