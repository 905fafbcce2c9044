"""Pictures that occur twice, in one set or in two.

Their shards are written again by tasks on Ray; all other jobs run in this process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import DataError, UsageError
from cluster.prepare.duplicates import find_duplicates
from cluster.prepare.shard_job import Picture
from cluster.prepare.write import write_shards
from cluster.shards import quarantine, read, verify
from cluster.shards.index import ShardSet
from tests.support.pictures import jpeg, noise, write_coco
from tests.support.preparing import (
    lines_of,
    plan_coco,
    quiet,
    run_here,
    write_here,
)


@pytest.fixture(scope="module")
def train_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Two pictures, to be looked for in other sets."""
    folder = tmp_path_factory.mktemp("train")
    pictures = {"x.jpg": jpeg(noise(20, 30)), "y.jpg": jpeg(noise(20, 30), turn=6)}
    return write_here(plan_coco(write_coco(folder / "coco", pictures), str(folder / "out")))


LEAKY = {
    "new.jpg": jpeg(noise(21, 30)),
    "leak.jpg": jpeg(noise(20, 30)),
    "turned.jpg": jpeg(noise(20, 30), turn=6),
    "new again.jpg": jpeg(noise(21, 30)),
}


def test_pictures_of_other_sets_are_reported_and_stay(train_set: ShardSet, tmp_path: Path) -> None:
    work = plan_coco(
        write_coco(tmp_path / "coco", LEAKY), str(tmp_path / "out"), against=(train_set.uri,)
    )
    run_here(work)
    prepared = write_shards(work, say=quiet)
    lines = lines_of(prepared)
    assert (
        f"leak        2 x a picture that is also in {train_set.uri} (such as leak.jpg = x.jpg)"
        in lines
    )
    assert "duplicate   1 x the picture of another image (such as new again.jpg = new.jpg)" in lines
    assert prepared.index.counts.images == 4 and prepared.quarantined == []
    # A finished set reports the same again; without `against` it is another set.
    again = plan_coco(str(tmp_path / "coco"), str(tmp_path / "out"), against=(train_set.uri,))
    assert lines_of(write_shards(again, say=quiet)) == lines
    with pytest.raises(UsageError, match="another source or other options"):
        plan_coco(str(tmp_path / "coco"), str(tmp_path / "out"))


def test_duplicates_are_dropped_and_counted_separately(
    train_set: ShardSet, ray_cluster: str, tmp_path: Path
) -> None:
    options = {"against": (train_set.uri,), "shard_bytes": 1, "max_quarantined": 0.0}
    folder = write_coco(tmp_path / "coco", LEAKY)
    work = plan_coco(folder, str(tmp_path / "out"), drop_duplicates=True, **options)
    run_here(work)
    said: list[str] = []
    prepared = write_shards(work, say=said.append)
    assert "3 of 4 shards are written again, for duplicates" in said
    assert prepared.shard_set is not None and read.read_annotations(prepared.shard_set)[
        "file_name"
    ].to_pylist() == ["new.jpg"]
    verify.verify_shard_set(prepared.shard_set)
    whys = {
        record.where: (record.what, record.why, record.detail)
        for record in quarantine.read_quarantine(str(tmp_path / "out"))
    }
    there = "the same picture is in another shard set"
    assert whys == {
        "leak.jpg": ("duplicate", there, f"as x.jpg in {train_set.uri}"),
        "turned.jpg": ("duplicate", there, f"as y.jpg in {train_set.uri}"),
        "new again.jpg": ("duplicate", "the same picture comes twice", "as new.jpg"),
    }
    counts = prepared.index.counts
    assert (
        counts.images,
        counts.dropped_images,
        counts.quarantined_images,
        counts.listed_images,
    ) == (1, 3, 0, 4)
    assert (counts.boxes, counts.lost_annotations, counts.listed_annotations) == (1, 3, 4)
    assert len(prepared.shard_set.shards) == 1

    # The same set comes of the notes of an interrupted run that drops, and of one that reports.
    for former in (True, False):
        output = str(tmp_path / f"again-{former}")
        first = plan_coco(folder, output, drop_duplicates=former, **options)
        run_here(first)
        drops = write_shards(plan_coco(folder, output, drop_duplicates=True, **options), say=quiet)
        assert drops.shard_set is not None and drops.shard_set.digest == prepared.shard_set.digest


def test_dropping_everything_is_refused(
    train_set: ShardSet, ray_cluster: str, tmp_path: Path
) -> None:
    folder = write_coco(tmp_path / "coco", {"leak.jpg": jpeg(noise(20, 30))})
    with pytest.raises(DataError, match="none of the 1 images is left: all are in"):
        write_here(
            plan_coco(folder, str(tmp_path / "out"), drop_duplicates=True, against=(train_set.uri,))
        )
    with pytest.raises(UsageError, match="not a shard set"):
        plan_coco(folder, str(tmp_path / "out"), against=(str(tmp_path),))


def test_of_equal_pictures_the_one_with_most_annotations_stays() -> None:
    pictures = [
        Picture(image_id, 0, f"{image_id}.jpg", "ab", boxes)
        for image_id, boxes in ((1, 0), (2, 3), (3, 3))
    ]
    found = find_duplicates(pictures, {})
    assert [(one.picture.image_id, one.same_as) for one in found] == [(1, "2.jpg"), (3, "2.jpg")]
