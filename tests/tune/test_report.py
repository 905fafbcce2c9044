"""sweep.html: every trial is on it, nothing is fetched, and it copes with what sweeps bring."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from cluster.runs.config import TrainConfig
from cluster.shards import index, write
from cluster.shards.format import Category, shard_name
from cluster.shards.index import ShardSet
from tests.support.shard_sets import row
from tune import plots, report, results, space_plots
from tune.build_space import space_of
from tune.config import SweepConfig
from tune.confirm import Confirmation
from tune.dimensions import Choice, Dimension, Range
from tune.importance import compared, importance
from tune.plan import Plan
from tune.plots import Trials
from tune.proposals import Sampler
from tune.space import Sample
from tune.trials import Point, Status, TrialRecord, ranked

CONFIG = TrainConfig.model_validate({"name": "cells-sweep", "data": {"train": "/t", "val": "/v"}})
ENTRIES = {
    "loss.box": ["smooth_l1", "giou", "diou"],
    "loss.beta": "log 0.01..1 when loss.box=smooth_l1",
    "training.batch_size": [4, 8, 16],
    "optimizer.learning_rate": "log 0.001..0.1",
    "augmentation.short_sides": [None, [640, 800]],
    "model.anchors.ratios": [[1.0], [0.5, 1.0, 2.0], [0.3333, 0.5, 1.0, 2.0, 3.0]],
}
NASTY = '<script>alert("x")</script>&\'ä猫$x$'


def plan(entries: dict[str, Any], *, train_set: Any = None, **sweep: Any) -> Plan:
    settings = {"preset": "none", "space": entries, "epochs": 9, "trials": 24}
    budget = SweepConfig.model_validate(settings | sweep)
    searched = space_of(budget.preset, budget.space, CONFIG)
    rows = SimpleNamespace(num_rows=1000)
    # Of what a training reads the page says the number of images.
    inputs: Any = SimpleNamespace(train_set=train_set or rows, val_set=rows)
    return Plan(CONFIG, budget, "/runs/sweeps/cells-sweep", searched, inputs, (), ())


def trial(number: int, sample: Sample, *aps: float | None, **changes: Any) -> TrialRecord:
    ms = 20.0 + number % 7
    curve = tuple(Point(1000 * epoch, epoch, ap, ap, ms) for epoch, ap in enumerate(aps, 1))
    status: Status = "done" if len(aps) == 9 else "stopped early"
    given = {"status": status, "curve": curve, "number": number, "sample": sample, "epochs": 9}
    return TrialRecord(f"trial-{number:08x}", f"/runs/{number}", **{**given, **changes})


def made_up(planned: Plan, count: int) -> list[TrialRecord]:
    """A sweep in which trials were stopped, failed, and have no score; AP falls away from gamma 2
    and from a learning rate of 0.03.
    """
    sampler = Sampler(planned.space, CONFIG, searcher="random", trials=count, seed=0, before=[])
    chance = random.Random(0)
    samples = [planned.space.given(CONFIG)]
    samples += [sampler.draw(str(number)) or {} for number in range(1, count)]
    records = list[TrialRecord]()
    for number, sample in enumerate(samples):
        top = 0.4 - 0.02 * abs(sample.get("loss.gamma", 2) - 2)
        top -= 0.05 * abs(np.log10(sample.get("optimizer.learning_rate", 0.03) / 0.03))
        ends = chance.choice([1, 3, 9]) if number else 9
        aps = [
            float(top * (1 - np.exp(-0.5 * epoch)) + chance.gauss(0, 0.004))
            for epoch in range(1, ends + 1)
        ]
        stop = "" if ends == 9 else "rung at 1,000 images: 3 of 9 trials were better"
        records.append(trial(number, sample, *aps, stop=stop))
    if count > 3:
        reason = f"the loss is not finite {NASTY}"
        records[2] = replace(records[2], status="failed", curve=(), reason=reason, diverged=True)
        records[3] = replace(records[3], status="running", curve=(Point(1000, 1, None, None),))
    return ranked(records)


class Page(HTMLParser):
    """Tags, addresses and texts of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.words = set[str](), list[str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def page(planned: Plan, records: Sequence[TrialRecord], **changes: Any) -> Page:
    text = report.page(planned, records, changes.get("confirmation"), "http://mlflow:5000")
    assert len(text.encode()) < 3 * 2**20
    return Page(text)


def pictures(shown: Page) -> list[str]:
    """The SVG of each plot."""
    start = "data:image/svg+xml;base64,"
    assert all(address.startswith(start) for address in shown.addresses)
    return [base64.b64decode(each.removeprefix(start)).decode() for each in shown.addresses]


def test_every_trial_and_reason_is_on_the_page_and_nothing_is_fetched() -> None:
    planned = plan(dict(list(ENTRIES.items())[:5]) | {"loss.gamma": "0..5"})
    records = made_up(planned, 24)
    shown = page(planned, records)
    for record in records:
        assert shown.words.count(record.trial) >= 1
        assert (record.reason or record.stop) in shown.words
        assert record.ap is None or f"{record.ap:.4f}" in shown.words
    assert "script" not in shown.tags and not {"link", "iframe"} & shown.tags
    for svg in pictures(shown):
        root = ElementTree.fromstring(svg)
        used = {
            value for node in root.iter() for name, value in node.attrib.items() if "href" in name
        }
        assert all(address.startswith("#") for address in used)
    for name in ENTRIES | {"loss.gamma": ""}:
        assert name in shown.words or name == "model.anchors.ratios"
    for command in ("train --config", "register --sweep"):
        assert f"retinaray {command}" in shown.words
    assert f"{records[0].trial}best" in shown.words.replace("\n", "")


def test_text_in_the_records_is_not_taken_for_html_or_for_a_formula() -> None:
    planned = plan({"loss.gamma": "0..5"})
    records = made_up(planned, 6)
    assert any(NASTY in record.reason for record in records)
    text = report.page(planned, records, None, "http://mlflow:5000")
    assert NASTY not in text and NASTY in unescape(text)


def test_a_sweep_with_one_trial_has_a_page() -> None:
    planned = plan({"loss.gamma": "0..5"})
    one = trial(0, {"loss.gamma": 2.0}, 0.25, status="done")
    shown = page(planned, [one])
    assert one.trial in shown.words and "given setting" in shown.words
    assert "Too few trials have an AP to tell: 1, at least 8 are needed." in shown.words
    # Curves, parallel coordinates, a slice and AP against time.
    assert len(pictures(shown)) == 4
    assert report.page(planned, [one], None, "x") == report.page(planned, [one], None, "x")


def test_a_sweep_of_lists_with_long_values_and_without_times_has_a_page() -> None:
    long = [[float(f"{base + step}.25") for step in range(9)] for base in range(1, 30)]
    planned = plan({"model.anchors.ratios": long})
    records = [
        trial(number, {"model.anchors.ratios": values}, 0.1 + number / 100)
        for number, values in enumerate(long[:9])
    ]
    untimed = [
        replace(one, curve=tuple(replace(point, ms_per_image=None) for point in one.curve))
        for one in records
    ]
    trials = Trials(tuple(ranked(untimed)), None)
    assert plots.pareto(trials) is None
    for made in (space_plots.parallel(trials, planned.space), plots.learning_curves(trials)):
        assert plots.data_uri(made).startswith("data:image/svg+xml;base64,")


def test_the_setting_of_the_user_is_found_and_named() -> None:
    planned = plan({"loss.gamma": "3..5", "loss.alpha": "0.05..0.95"})
    # gamma 2 is not in the space, 3 is the nearest.
    samples = [{"loss.gamma": gamma, "loss.alpha": 0.25} for gamma in (4.0, 3.0)]
    records = [trial(number, sample, 0.3 - number / 10) for number, sample in enumerate(samples)]
    assert report.given_trial(planned, records) is records[1]
    assert report.given_trial(planned, records[:1]) is None
    words = page(planned, records).words
    assert "The given configuration is not in the space (loss.gamma)" in words
    # 0.3 - 0.2
    assert "AP 0.2000, 0.1000 less (loss.gamma 3, loss.alpha 0.25)" in words
    assert "was not tried" in page(planned, records[:1]).words


def test_a_confirmation_is_on_the_page() -> None:
    planned = plan({"loss.gamma": "0..5"})
    (one,) = records = [trial(0, {"loss.gamma": 2.0}, 0.25)]
    confirmation = Confirmation(one.trial, {one.trial: (0.25, 0.24)}, 0.2, 1, "better & sure")
    words = page(planned, records, confirmation=confirmation).words
    assert "better & sure" in words
    assert f"{one.trial} 0.2500, then 0.2400; given setting 0.2000" in words
    assert "Each setting was trained once" not in words


def test_the_field_that_matters_is_found() -> None:
    entries = {
        "loss.gamma": "0..5",
        "optimizer.learning_rate": "log 0.001..0.1",
        "loss.box": ["smooth_l1", "giou"],
        "loss.beta": "log 0.01..1 when loss.box=smooth_l1",
    }
    planned = plan(entries)
    drawn = Sampler(planned.space, CONFIG, searcher="random", trials=30, seed=1, before=[])
    samples = [drawn.draw(str(number)) or {} for number in range(30)]

    # AP depends on the learning rate alone, and a little on gamma.
    def ap(sample: Sample) -> float:
        return (
            0.3
            - 0.1 * abs(np.log10(sample["optimizer.learning_rate"] / 0.03))
            + (0.001 * sample["loss.gamma"])
        )

    records = [trial(number, sample, ap(sample)) for number, sample in enumerate(samples)]
    found = importance(planned.space, records)
    assert next(iter(found.shares)) == "optimizer.learning_rate"
    assert found.shares["optimizer.learning_rate"] > 0.8
    assert sum(found.shares.values()) == pytest.approx(1)
    # Only some trials have it.
    assert found.not_judged == ("loss.beta",) and not found.missing
    assert importance(planned.space, records) == found


def test_importance_compares_trials_at_the_same_length() -> None:
    records = [trial(k, {"loss.gamma": k / 4}, *[0.1, 0.3, 0.2][: 1 + k % 3]) for k in range(18)]
    # Of 18 trials 12 reached 2,000 images; until then their best AP was that after 2,000.
    images, aps = compared(records)
    assert (images, [ap for _, ap in aps]) == (2000, [0.3] * 12)
    # Fewer than 8 would be no basis: 9 trials, of which 6 reached 2,000.
    images, aps = compared(records[:9])
    assert (images, [ap for _, ap in aps]) == (1000, [0.1] * 9)
    assert compared([]) == (0, [])


def test_no_importance_is_told_where_there_is_nothing_to_tell_it_from() -> None:
    planned = plan({"loss.gamma": "0..5"})
    samples = [{"loss.gamma": number / 2} for number in range(8)]
    equal = [trial(number, sample, 0.25) for number, sample in enumerate(samples)]
    assert "same AP" in importance(planned.space, equal).missing
    unscored = [trial(number, sample, None) for number, sample in enumerate(samples)]
    few = [*[trial(9, {"loss.gamma": 5.0}, 0.1 * k) for k in range(7)], *unscored]
    assert "7, at least 8" in importance(planned.space, few).missing
    either = plan(
        {
            "loss.box": ["smooth_l1", "giou"],
            "loss.beta": "0.1..1 when loss.box=smooth_l1",
        }
    )
    given = [trial(k, {"loss.box": "smooth_l1", "loss.beta": 0.5}, 0.1 * k) for k in range(8)]
    # Each value was tried once: nothing varies, and nothing is divided by zero.
    assert importance(either.space, given).shares.keys() == {"loss.box", "loss.beta"}


def test_the_front_is_what_no_other_trial_beats() -> None:
    def timed(number: int, ap: float | None, ms: float | None) -> TrialRecord:
        return trial(number, {}, curve=(Point(8, 1, ap, ap, ms),))

    fast, best = timed(0, 0.2, 10.0), timed(1, 0.4, 30.0)
    middle, slow, worse = timed(2, 0.3, 20.0), timed(3, 0.4, 31.0), timed(4, 0.25, 20.0)
    unknown, unscored = timed(5, 0.9, None), timed(6, None, 1.0)
    every = [slow, worse, unknown, best, unscored, middle, fast]
    assert plots.front(every) == [fast, middle, best]
    assert plots.front([unknown, unscored]) == []


def test_values_lie_on_an_axis_as_they_are_searched() -> None:
    even = space_plots.Scale(Dimension(("a",), Range(1, 5), {}))
    assert [even.at({"a": value}) for value in (1, 2, 5)] == [0, 0.25, 1]
    log = space_plots.Scale(Dimension(("a",), Range(0.01, 1, log=True), {}))
    assert log.at({"a": 0.1}) == pytest.approx(0.5)
    lists = space_plots.Scale(Dimension(("a", "b"), Choice((([1.0], None), ([2.0], 3))), {}))
    # The middles of two halves.
    assert lists.at({"a": [2.0], "b": 3}) == 0.75 and lists.at({"a": [2.0]}) is None
    assert lists.ticks() == [(0.25, "1 / null"), (0.75, "2 / 3")]
    assert space_plots.Scale(Dimension(("a",), Range(2, 2), {})).at({"a": 2}) == 0.5


def boxes_set(uri: str) -> ShardSet:
    boxes = np.array([[0, 0, 10, 10], [4, 4, 20, 16]], np.float32)
    rows = [replace(row(number, 0), boxes_N4=boxes, labels_N=[0, 0]) for number in range(3)]
    rows = [replace(one, crowd_N=[False, True], area_N=[100.0, 192.0]) for one in rows]
    shard = write.write_shard(uri, shard_name(0, 1), rows, row_group_rows=4)
    return index.write_index(uri, index.Index((Category(0, 1, "cat"),), (shard,)))


def test_anchors_are_drawn_where_they_were_searched(tmp_path: Path) -> None:
    planned = plan(
        {"model.anchors.scales": [[1.0], [1.0, 1.414]]}, train_set=boxes_set(str(tmp_path))
    )
    records = [trial(0, {"model.anchors.scales": [1.0]}, 0.5)]
    shown = page(planned, records)
    assert "Anchors over the objects" in shown.words and len(pictures(shown)) == 5
    assert "Anchors over" not in page(plan({"loss.gamma": "0..5"}), records).words


def test_two_hundred_trials_and_more_fit_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan({"loss.gamma": "0..5", "loss.box": ["smooth_l1", "giou"]}, trials=320)
    # More than are drawn as vectors, and than the table shows.
    monkeypatch.setattr(report, "MOST_ROWS", 200)
    records = made_up(planned, plots.MOST_VECTORS + 20)
    shown = page(planned, records)
    assert records[199].trial in shown.words and records[200].trial not in shown.words
    assert "The first 200 of them; all are in results.csv." in shown.words
    assert any("image/png" in svg for svg in pictures(shown))


def test_the_page_lies_in_the_folder_of_the_sweep_and_in_its_mlflow_run(tmp_path: Path) -> None:
    planned = replace(plan({"loss.gamma": "0..5"}), uri=str(tmp_path))
    records = made_up(planned, 4)
    results.publish(planned, records, None, "http://mlflow:5000")
    text = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert text == report.page(planned, records, None, "http://mlflow:5000")
    logged: dict[str, str] = {}
    run: Any = SimpleNamespace(
        log_metrics=lambda values, step: None,
        set_tag=lambda name, value: None,
        log_text=lambda content, name: logged.update({name: content}),
    )
    results.log_results(run, str(tmp_path), records, None)
    assert logged["sweep.html"] == text
