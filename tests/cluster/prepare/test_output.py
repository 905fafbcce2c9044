"""The output of prepare never overwrites a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.formats.read import SourcePaths
from cluster.prepare.plan import Options, plan_shards
from cluster.shards.index import ShardSet
from tests.support.pictures import jpeg, noise, write_coco
from tests.support.preparing import (
    plan_coco,
)


def test_the_output_may_not_lie_in_the_source(small_coco: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in small_coco.rglob("*") if path.is_file()}
    link = tmp_path / "link"
    link.symlink_to(small_coco / "images")
    for output in (
        small_coco / "images/train",
        small_coco / "images/train/shards",
        link / "train",
        link / "train/deeper/still",
    ):
        with pytest.raises(
            UsageError,
            match=(
                rf"--output {output}: is --images .*images/train or lies in it; the source is never"
                r" written to"
            ),
        ):
            plan_coco(str(small_coco), str(output), overwrite=True)
    with pytest.raises(UsageError, match="is --annotations .*instances_train.json or lies in it"):
        plan_coco(str(small_coco), str(small_coco / "annotations/instances_train.json"))
    assert {path: path.read_bytes() for path in small_coco.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "name",
    [
        "index.json",
        "quarantine.parquet",
        "report.html",
        "shard-00000-of-00001.parquet",
        ".progress/a.json",
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_annotations_with_the_name_of_a_file_of_the_set_are_not_overwritten(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    folder = Path(write_coco(tmp_path, {"a.jpg": jpeg(noise(20, 30))}))
    annotations = folder / "set" / name
    annotations.parent.mkdir(parents=True)
    (folder / "annotations/instances_train.json").rename(annotations)
    before = annotations.read_bytes()
    place = SourcePaths("train", "coco", str(annotations), str(folder / "images/train"))
    with pytest.raises(
        UsageError,
        match=(
            f"--annotations .*{name} has the name of a file that is written there; give another"
            " folder"
        ),
    ):
        plan_shards([place], output=str(folder / "set"), options=Options(), overwrite=overwrite)
    assert annotations.read_bytes() == before
    # Beside the annotations is no harm.
    plan_shards([place], output=str(folder / "set/shards"), options=Options(), overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_set_is_not_compared_with_itself(
    small_coco: Path, finished: ShardSet, overwrite: bool
) -> None:
    index = (Path(finished.uri) / "index.json").read_bytes()
    with pytest.raises(UsageError, match=f"--against {finished.uri}: is the output itself"):
        plan_coco(str(small_coco), finished.uri, against=(finished.uri,), overwrite=overwrite)
    assert (Path(finished.uri) / "index.json").read_bytes() == index
