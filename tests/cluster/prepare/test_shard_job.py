"""The work on one shard and the note about it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.prepare.shard_job import ShardNote, find_report, run_job
from cluster.shards.format import RowGroup, Shard
from cluster.shards.quarantine import Quarantined
from tests.support.preparing import (
    jobs_of,
    plan_coco,
)


def test_a_note_without_its_shard_is_ignored(small_coco: Path, tmp_path: Path) -> None:
    work = plan_coco(str(small_coco), str(tmp_path))
    first, second = jobs_of(work)[:2]
    run_job(first)
    run_job(second)
    assert find_report(first) is not None
    os.truncate(tmp_path / first.name, 100)
    assert find_report(first) is None
    other = plan_coco(str(small_coco), str(tmp_path), row_group_rows=3)
    assert find_report(second) is not None and find_report(other.job(1)) is None


NOTE_OF_THE_FIRST_VERSION = """
{"fingerprint": "9c31",
 "shard": {"name": "shard-00000-of-00001.parquet", "rows": 2, "bytes": 900, "sha256": "5be0",
           "row_groups": [[2, 4, 880, "f00d"]], "footer_sha256": "c0de"},
 "counts": {"images": 2, "boxes": 3, "crowds": 1, "empty_images": 1, "lost": 4},
 "repairs": {"boxes clipped to the picture": 2},
 "quarantined": [{"what": "image", "where": "b.jpg", "why": "the file is empty", "raw": "{}"}],
 "pictures": [[7, 0, "a.jpg", "77a1", 3]], "drop": [9]}
"""


def test_a_note_of_the_first_version_is_read() -> None:
    note = ShardNote.from_json(json.loads(NOTE_OF_THE_FIRST_VERSION))
    assert note.fingerprint == "9c31"
    assert note.report.shard == Shard(
        "shard-00000-of-00001.parquet", 2, 900, "5be0", (RowGroup(2, 4, 880, "f00d"),), "c0de"
    )
    assert note.report.counts.lost == 4 and note.report.drop == (9,)
    assert note.report.quarantined == (Quarantined("image", "b.jpg", "the file is empty", "{}"),)
    # Today's form has a version and the values of each reason.
    assert ShardNote.from_json(json.loads(json.dumps(note.to_json()))) == note
    written = note.to_json()
    assert written.pop("schema_version") == 1
    assert written["quarantined"][0].pop("detail") == ""
    assert json.loads(json.dumps(written)) == json.loads(NOTE_OF_THE_FIRST_VERSION)


@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"counts": {"imags": 2}}, {"pictures": [[1]]}, {"drop": None}]
)
def test_a_note_of_another_form_is_ignored(
    small_coco: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    job = jobs_of(plan_coco(str(small_coco), str(tmp_path)))[0]
    run_job(job)
    note = tmp_path / ".progress" / f"{job.name}.json"
    content = json.loads(note.read_text())
    assert find_report(job) is not None
    note.write_text(json.dumps(content | change))
    assert find_report(job) is None
