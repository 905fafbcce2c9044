"""The presets that look for anchors: given and found ones become a list that is trained."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cluster.runs.config import TrainConfig
from tests.support.box_sets import annotations, centred, write_annotations
from tune import anchors
from tune.build_space import space_of
from tune.found_anchors import (
    FIELDS,
    adoption,
    find_anchors,
    is_found,
    searches_anchors,
    with_found_anchors,
)
from tune.trials import Point, TrialRecord

CONFIG = TrainConfig.model_validate(
    {"data": {"train": "/t", "val": "/v"}, "canvas": {"height": 480, "width": 640}}
)
GIVEN = [[32.0, 64.0, 128.0, 256.0, 512.0], [1.0, 1.26, 1.587], [0.5, 1.0, 2.0]]


def test_which_sweeps_look_for_anchors() -> None:
    assert searches_anchors("anchors", {}, CONFIG)
    assert searches_anchors("focal+anchors", {"loss.gamma": "0..3"}, CONFIG)
    assert not searches_anchors("focal", {}, CONFIG)
    # Whoever says which anchors to try gets these.
    assert not searches_anchors("anchors", {"model.anchors.ratios": [[1.0]]}, CONFIG)


def test_given_and_found_anchors_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Wide boxes, which the default anchors miss.
    centres = [[x, y] for x in range(150, 500, 10) for y in range(50, 430, 20)]
    objects = annotations(centred(centres, 240, 24))
    shard_set = write_annotations(str(tmp_path / "set"), objects)
    short = partial(anchors.search_anchors, candidates=300, confirm=3)
    monkeypatch.setattr(anchors, "search_anchors", short)
    said: list[str] = []

    assert not is_found(str(tmp_path))
    find_anchors(CONFIG, shard_set, str(tmp_path), say=said.append)
    assert is_found(str(tmp_path))
    given = {"loss.gamma": "0..3"}
    preset, entries = with_found_anchors("focal+anchors", given, str(tmp_path))
    assert preset == "focal" and entries["loss.gamma"] == "0..3"
    first, *found = entries["+".join(FIELDS)]
    assert first == GIVEN and found
    space = space_of(preset, entries, CONFIG)
    assert space.outside(CONFIG) == () and "loss.alpha" in {one.name for one in space.dimensions}
    assert any("recall all" in line for line in said)
    assert {"anchors.json", "anchors.txt", "anchors.yaml", "anchors.png"} <= {
        path.name for path in tmp_path.iterdir()
    }


def record(name: str, values: list[list[float]], ap: float | None) -> TrialRecord:
    sample = dict(zip(FIELDS, values, strict=True))
    curve = () if ap is None else (Point(8, 1, ap, ap),)
    return TrialRecord(name, f"/s/{name}", 0, sample, 1, status="done", curve=curve)


def test_found_anchors_are_adopted_only_where_they_train_better() -> None:
    other = [[8.0, 16.0, 32.0, 64.0, 128.0], [1.0], [0.1, 0.2]]
    worse, better = record("a", other, 0.1), record("b", other, 0.3)
    given = record("c", GIVEN, 0.2)
    assert adoption([better, given, worse], CONFIG) == (
        "after epoch 1 the found ones had AP 0.3000, the given ones 0.2000: adopted"
    )
    assert adoption([given, worse], CONFIG) == (
        "after epoch 1 the found ones had AP 0.1000, the given ones 0.2000: the given ones stay"
    )
    longer = replace(worse, curve=(*worse.curve, Point(16, 2, 0.5, 0.5)))
    # The given ones were stopped after one epoch, and were better until then.
    assert (adoption([longer, given], CONFIG) or "").endswith("0.2000: the given ones stay")
    assert adoption([given], CONFIG) is None
    assert adoption([record("c", GIVEN, None), worse], CONFIG) is None
