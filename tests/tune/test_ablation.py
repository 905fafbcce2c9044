"""Tables of made-up trials beside the paper's figures."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from scipy.stats import t

from cluster.runs.config import TrainConfig
from tests.support.shard_sets import row, write_set
from tune import ablation, plan, presets, results, space
from tune.ablation import Table
from tune.ablation_plot import figure
from tune.build_space import space_of
from tune.config import SweepConfig
from tune.imbalance import Imbalance
from tune.sweep import Swept
from tune.trials import Point, TrialRecord

CONFIG = TrainConfig.model_validate({"data": {"train": "/t", "val": "/v"}})
ARMS = presets.paper_arms()
SETTINGS = plan.distinct([arm.sample for arm in ARMS], CONFIG)


def record(sample: space.Sample, *aps: float | None, seed: int = 0, **changes: Any) -> TrialRecord:
    """A trial of as many epochs as there are APs."""
    sample = {**sample, plan.SEED: seed} if seed else sample
    name = space.trial_name(sample, len(aps))
    curve = tuple(Point(8 * epoch, epoch, ap, ap) for epoch, ap in enumerate(aps, 1))
    known = {"number": seed, "sample": sample, "epochs": len(aps), "curve": curve, "status": "done"}
    return TrialRecord(name, f"/s/runs/{name}", **known | changes)


def sample_of(table: str, label: str) -> space.Sample:
    return next(arm.sample for arm in ARMS if (arm.table, arm.label) == (table, label))


def tables(records: Sequence[TrialRecord]) -> dict[str, Table]:
    """Of all arms; for each scale of the anchors there are a hundred a positive."""
    found = ablation.tables(
        records,
        ARMS,
        CONFIG,
        imbalance_of=lambda config: Imbalance(100 * len(config.model.anchors.scales), 1),
    )
    return {table.number: table for table in found}


def ablation_row(records: Sequence[TrialRecord], table: str, label: str) -> ablation.Row:
    return next(row for row in tables(records)[table].rows if row.label == label)


GAMMA_1 = sample_of("1b", "gamma 1, alpha 0.25")


def test_a_row_is_the_mean_of_its_seeds_after_the_last_epoch_with_students_interval() -> None:
    # The best epoch is not what counts: 0.9 is above all others.
    records = [
        record(GAMMA_1, 0.9, 0.30),
        record(GAMMA_1, 0.1, 0.33, seed=1),
        record(GAMMA_1, 0.1, 0.36, seed=2),
    ]
    found = ablation_row(records, "1b", "gamma 1, alpha 0.25")
    assert found.ap == pytest.approx(33) and found.paper_ap == 33.7
    assert list(found.results) == [one.trial for one in records]
    low, high = t.interval(0.95, df=2, loc=33, scale=3 / 3**0.5)
    assert found.margin is not None
    assert (33 - found.margin, 33 + found.margin) == pytest.approx((low, high))
    # 4.303, Student's t of two degrees of freedom, times 3 / sqrt(3).
    assert found.margin == pytest.approx(4.303 * 3**0.5, rel=1e-3)


def test_one_seed_has_no_interval_and_the_text_says_so() -> None:
    records = [record(GAMMA_1, 0.2)]
    found = ablation_row(records, "1b", "gamma 1, alpha 0.25")
    assert (found.ap, found.margin) == (20.0, None)
    text = ablation.text(list(tables(records).values()))
    assert "one seed: no interval" in text
    two = ablation.text(list(tables([*records, record(GAMMA_1, 0.3, seed=1)]).values()))
    assert "one seed" not in two
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "failed", "reason": "the loss is nan"}, "failed: the loss is nan"),
        ({"status": "stopped early", "stop": "no time is left"}, "stopped early: no time is left"),
        ({"status": "running"}, "running"),
        ({"curve": (Point(8, 1, None, None),)}, "no AP"),
    ],
)
def test_a_seed_without_the_whole_budget_does_not_count_and_is_named(
    changes: dict[str, Any], why: str
) -> None:
    lost = record(GAMMA_1, 0.9, seed=1, **changes)
    records = [record(GAMMA_1, 0.2), lost]
    found = ablation_row(records, "1b", "gamma 1, alpha 0.25")
    assert found.ap == 20.0 and found.missing == {lost.trial: why}
    text = ablation.text(list(tables(records).values()))
    assert f"gamma 1, alpha 0.25: {lost.trial} {why}" in text


def test_a_row_that_was_not_trained_stays_with_the_papers_figure() -> None:
    found = ablation_row([record(GAMMA_1, 0.2)], "1a", "alpha 0.999")
    assert (found.ap, found.margin, found.paper_ap) == (None, None, 25.1)
    text = ablation.text(list(tables([record(GAMMA_1, 0.2)]).values()))
    assert re.findall(r"not trained: (.+)", text) == [
        "1 of 1 rows",
        "7 of 7 rows",
        "6 of 7 rows",
        "7 of 7 rows",
    ]


def test_a_training_stands_in_every_row_that_has_its_configuration() -> None:
    # 22 rows; gamma 2 of Table 1b is 3 x 3 anchors of 1c, and gamma 0 is alpha 0.75 of 1a.
    assert len(SETTINGS) == 20
    own = record(sample_of("1b", "gamma 2, alpha 0.25"), 0.4)
    balanced = record(sample_of("1a", "alpha 0.75"), 0.3)
    rows = {
        (table.number, row.label): row
        for table in tables([own, balanced]).values()
        for row in table.rows
        if row.results
    }
    assert {place: list(row.results) for place, row in rows.items()} == {
        ("1a", "alpha 0.75"): [balanced.trial],
        ("1b", "gamma 0, alpha 0.75"): [balanced.trial],
        ("1b", "gamma 2, alpha 0.25"): [own.trial],
        ("1c", "scales 3, ratios 3"): [own.trial],
    }


def test_rows_of_the_anchors_have_the_loss_of_the_configuration() -> None:
    other = TrainConfig.model_validate({**CONFIG.model_dump(), "loss": {"gamma": 1.5}})
    # The rows of 1c have gamma 1.5 now, so none is one of 1b.
    assert len(plan.distinct([arm.sample for arm in ARMS], other)) == 21


def test_rows_without_a_field_that_is_searched_are_left_out_and_others_cannot_be_added() -> None:
    anchors = "model.anchors.scales+model.anchors.ratios"
    sweep = SweepConfig(preset="paper", space={anchors: "none"})
    searched = space_of("paper", sweep.space, CONFIG)
    left = plan.Plan(CONFIG, sweep, "/s", searched, None, (), ())  # pyright: ignore
    assert {arm.table for arm in left.arms} == {"5.1", "1a", "1b"}
    assert replace(left, sweep=SweepConfig()).arms == ()
    with pytest.raises(ValidationError, match=r"sweep.space.loss.beta: does nothing with"):
        SweepConfig(preset="paper", space={"loss.beta": "0.1..1"})


def test_the_csv_has_a_line_for_each_row() -> None:
    records = [record(GAMMA_1, 0.2), record(GAMMA_1, 0.4, seed=1)]
    found = tables([*records, record(GAMMA_1, 0.4, seed=2, status="failed", reason="a, b")])
    lines = list(csv.DictReader(io.StringIO(ablation.comma_separated(list(found.values())))))
    assert len(lines) == len(ARMS)
    (line,) = [line for line in lines if line["seeds"] == "2"]
    assert (line["table"], line["row"]) == ("1b", "gamma 1, alpha 0.25")
    assert json.loads(line["setting"]) == GAMMA_1
    assert float(line["AP_percent"]) == pytest.approx(30) and line["paper_AP_percent"] == "33.7"
    assert float(line["AP_low"]) < 20 and float(line["AP_high"]) > 40
    assert float(line["anchors_a_positive"]) == 300
    assert line["trials"] == " ".join(one.trial for one in records)
    assert line["without_result"].endswith(" failed: a, b")
    untrained = next(line for line in lines if line["row"] == "cross entropy")
    assert untrained["AP_percent"] == untrained["AP_low"] == untrained["trials"] == ""


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(GAMMA_1, 0.2)],
        [record(GAMMA_1, 0.0)],
        [record(one, 0.2 + 0.01 * n, seed=n) for one in SETTINGS for n in range(3)],
    ],
    ids=["none", "one", "zero", "all"],
)
def test_the_picture_can_be_drawn_from_whatever_there_is(records: list[TrialRecord]) -> None:
    found = tables(records)
    panels = figure(list(found.values())).axes
    # 1 + 7, 7 and 7 rows.
    assert [len(axes.get_xticks()) for axes in panels] == [8, 7, 7]
    # The best of the paper is as high as the best of ours, or has its own height without one.
    (paper,) = [line for line in panels[1].lines if line.get_marker() == "s"]
    ours = max((row.ap for row in found["1b"].rows if row.ap is not None), default=0.0)
    assert max(paper.get_ydata()) == pytest.approx(ours or 34.0)
    # Table 1c has a line for 1 ratio and one for 3 ratios.
    assert sum(line.get_marker() == "s" for line in panels[2].lines) == 2


class Artifacts:
    """In place of an MLflow run: what is logged, by name."""

    def __init__(self) -> None:
        self.logged: dict[str, bytes] = {}

    def log_artifact(self, path: str) -> None:
        self.logged[Path(path).name] = Path(path).read_bytes()


def test_the_tables_are_in_the_folder_of_the_sweep_its_last_lines_and_its_run(
    tmp_path: Path,
) -> None:
    sets = {split: f"{tmp_path}/{split}" for split in ("train", "val")}
    for uri in sets.values():
        write_set(uri, [[row(1, boxes=2), row(2, boxes=1)]])
    config = TrainConfig.model_validate(
        {"data": sets, "storage": f"{tmp_path}/runs", "canvas": {"height": 64, "width": 96}}
    )
    planned = plan.plan_of(config, SweepConfig(preset="paper", seeds=2), f"{tmp_path}/sweep")
    assert planned.trials == 2 * 20 and len(planned.arms) == len(ARMS)
    records = [record(one, 0.2) for one in planned.fixed]
    results.publish(planned, records, None, "http://h")
    with Image.open(tmp_path / "sweep" / ablation.PICTURE) as picture:
        assert picture.format == "PNG" and min(picture.size) > 800
    text = (tmp_path / "sweep" / ablation.TEXT).read_text()
    shown = "\n".join(Swept(planned, records, None, "http://h").lines()) + "\n"
    assert shown.endswith(f"\npicture  {planned.uri}/{ablation.PICTURE}\n\n{text}")
    run = Artifacts()
    ablation.log(run, planned.uri)  # pyright: ignore
    assert run.logged[ablation.TEXT] == text.encode() and len(run.logged) == 3
    stored = (tmp_path / "sweep" / ablation.LINES).read_text()
    lines = list(csv.DictReader(io.StringIO(stored)))
    # Two seeds of each, without a spread.
    assert {line["seeds"] for line in lines} == {"2"}
    # 9 anchors at each of 8 x 12, 4 x 6, 2 x 3, 1 x 2 and 1 x 1 positions.
    own = next(line for line in lines if line["row"] == "scales 3, ratios 3")
    assert float(own["anchors_an_image"]) == 9 * (96 + 24 + 6 + 2 + 1)
    assert float(own["positives_an_image"]) >= 1.5
