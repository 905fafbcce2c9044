"""A JSON file is the record that it should hold, or one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from cluster.prediction.plan import Plan
from cluster.prediction.summary import Summary
from cluster.runs.evaluations import Evaluation, Request
from cluster.runs.lease import LeaseRecord
from cluster.runs.run_folder import Claim, Finished, TrackingRecord
from cluster.shards.index import Index
from cluster.storage import files, record_files


@dataclass(frozen=True)
class Point:
    name: str
    at: tuple[int, ...]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Point:
        return cls(stored["name"], tuple(stored["at"]))


def test_a_record_is_read_with_its_types(tmp_path: Path) -> None:
    uri = str(tmp_path / "point.json")
    for stored, words in [
        ({"name": "a"}, "'at' is missing"),
        ({"name": 1, "at": []}, "name: Input should be a valid string"),
        ({"name": "a", "at": [1, "2"]}, "at.1: Input should be a valid integer"),
        ({"name": "a", "at": 7}, "'int' object is not iterable"),
        ([], "list indices must be integers"),
    ]:
        files.write_json(uri, stored)
        with pytest.raises(DataError, match=f"{uri}: is damaged .{words}.*; delete it"):
            record_files.read(uri, Point.from_json, remedy="delete it")
    files.write_json(uri, {"name": "a", "at": [1, 2]})
    assert record_files.read(uri, Point.from_json, remedy="") == Point("a", (1, 2))


def test_a_message_is_short_and_on_one_line(tmp_path: Path) -> None:
    uri = str(tmp_path / "point.json")

    def refused(stored: Any) -> None:
        raise ValueError(f"{stored!r} is wrong")

    files.write_json(uri, "\x1b[2J\n" * 1_000_000)
    with pytest.raises(DataError) as caught:
        record_files.read(uri, refused, remedy="delete it")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"a\.json: has 1048576 MiB, 512 are read at once"):
        files.read_json(str(tmp_path / "a.json"))


STRANGE = [None, 0, -1, 10**19, 1e400, "a", "", [], {}, [[]], {"": None}, [1, 2, 3], True]


@pytest.mark.parametrize(
    ("from_json", "keys"),
    [
        (Index.from_json, "categories shards counts sources source_digest set_digest duplicates"),
        (Claim.from_json, "identity config run_uuid"),
        (TrackingRecord.from_json, "uri experiment run_id complete"),
        (Finished.from_json, "images_seen epochs stopped"),
        (LeaseRecord.from_json, "driver since process token beat"),
        (Request.from_json, "checkpoint images_seen epoch"),
        (Evaluation.from_json, "checkpoint images_seen epoch metrics per_class weights version"),
        (Plan.from_json, "version claim claim_digest parts passed_over"),
        (Summary.from_json, "images ok errors errors_by_reason first_errors classes timing"),
    ],
)
def test_whatever_a_file_of_ours_holds_is_a_record_or_one_line(
    from_json: Callable[[Any], Any], keys: str
) -> None:
    for content in [*STRANGE, *({name: one for name in keys.split()} for one in STRANGE)]:
        # As it comes out of a file.
        stored = json.loads(json.dumps(content))
        with pytest.raises(DataError, match="f.json: is damaged"):
            record_files.build(stored, from_json, "f.json", remedy="delete it")
    for given in keys.split():
        for one in STRANGE:
            with pytest.raises(DataError, match="f.json: is damaged"):
                record_files.build({given: one}, from_json, "f.json", remedy="delete it")
