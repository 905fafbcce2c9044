"""From a preset and entries to a space, checked against the configuration."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from cluster.storage import yaml_text
from tests.support.documents import ROOT, blocks
from tune.build_space import space_of
from tune.dimensions import Range
from tune.presets import Preset


def config(**sections: Any) -> TrainConfig:
    return TrainConfig.model_validate({"data": {"train": "/t", "val": "/v"}, **sections})


def refusal(preset: Preset, entries: dict[str, Any], given: TrainConfig) -> str:
    with pytest.raises(UsageError) as caught:
        space_of(preset, entries, given)
    return str(caught.value)


def names(preset: Preset, entries: dict[str, Any], given: TrainConfig | None = None) -> list[str]:
    return [one.name for one in space_of(preset, entries, given or config()).dimensions]


def test_entries_add_to_the_preset_replace_and_remove() -> None:
    assert names("focal", {}) == ["loss.gamma", "loss.alpha"]
    assert names("focal", {"optimizer.warmup": "0..0.1"})[-1] == "optimizer.warmup"
    assert names("focal", {"loss.gamma": "none"}) == ["loss.alpha"]
    assert names("focal", {"loss.gamma": None}) == ["loss.alpha"]
    replaced = space_of("focal", {"loss.gamma": "1..2"}, config())
    assert {one.name: one.values for one in replaced.dimensions}["loss.gamma"] == Range(1.0, 2.0)
    # A pair replaces the two dimensions of its fields.
    assert names("focal", {"loss.gamma+loss.alpha": [[0, 0.75]]}) == ["loss.gamma+loss.alpha"]
    assert names("none", {"loss.gamma": "0..5"}) == ["loss.gamma"]
    assert names("focal", {"loss.gamma + loss.alpha": [[0, 0.75]]}) == ["loss.gamma+loss.alpha"]


def test_gamma_may_be_zero() -> None:
    space = space_of("focal", {}, config())
    assert space.fits({"loss.gamma": 0.0}) and space.valid(config(), {"loss.gamma": 0.0}) is None


@pytest.mark.parametrize("preset", get_args(Preset))
def test_a_preset_is_valid_and_holds_the_configuration_of_the_paper(preset: Preset) -> None:
    if preset == "none":
        assert "nothing is searched; give entries" in refusal(preset, {}, config())
        return
    space = space_of(preset, {}, config())
    assert space.outside(config()) == () and space.fits(space.given(config()))
    assert space.valid(config(), space.given(config())) is None


def test_a_preset_leaves_out_what_the_model_does_not_have() -> None:
    balanced = config(loss={"classification": "balanced_cross_entropy"})
    assert names("focal", {}, balanced) == ["loss.alpha"]
    jitter = config(augmentation={"short_sides": (640, 800)})
    assert "augmentation.scale_min" in names("augmentation", {})
    assert "augmentation.scale_min" not in names("augmentation", {}, jitter)
    plain = config(loss={"classification": "cross_entropy"})
    message = refusal("focal", {}, plain)
    assert (
        "nothing is searched here (loss.gamma: loss.classification is cross_entropy, not foc"
        in message
    )
    assert names("focal", {"optimizer.warmup": "0..0.1"}, plain) == ["optimizer.warmup"]


def test_conditions_come_after_what_they_ask_for() -> None:
    entries = {
        "loss.beta": "log 0.01..1 when loss.box=smooth_l1",
        "loss.box": "[smooth_l1, giou]",
    }
    assert names("none", entries) == ["loss.box", "loss.beta"]
    circle = {
        "loss.box": "[smooth_l1, giou] when optimizer.name=sgd",
        "optimizer.name": "[sgd, adamw] when loss.box=giou",
    }
    assert "the conditions of loss.box, optimizer.name form a circle" in refusal(
        "none", circle, config()
    )


def test_a_condition_on_the_configuration_holds_or_is_refused() -> None:
    entries = {"loss.beta": "log 0.01..1 when loss.box=smooth_l1"}
    (dimension,) = space_of("none", entries, config()).dimensions
    assert dimension.when == {}, "it always holds"
    message = refusal("none", entries, config(loss={"box": "giou"}))
    assert "sweep.space.loss.beta log 0.01..1 when loss.box=smooth_l1: its condition" in message
    assert "never holds (loss.box is giou, not smooth_l1)" in message
    # Nor does it hold where loss.box is searched without that value.
    assert "never holds" in refusal("none", {**entries, "loss.box": "[l1, giou]"}, config())


def test_a_condition_on_a_range_is_refused() -> None:
    entries = {"loss.gamma": "0..5", "loss.alpha": "0.1..0.9 when loss.gamma=2"}
    assert "loss.gamma is searched as a range" in refusal("none", entries, config())


@pytest.mark.parametrize(
    ("entries", "sections", "words"),
    [
        ({"loss.gamma": "0..11"}, {}, "sweep.space.loss.gamma: loss.gamma 11: must be less than"),
        (
            {"loss.beta": "0.1..1"},
            {"loss": {"box": "giou"}},
            "sweep.space.loss.beta 0.1..1: loss.beta 0.1: does nothing where loss.box is giou",
        ),
        (
            {"model.anchors.base_sizes": [[8, 16]]},
            {},
            "has 2 entries for the 5 levels of anchors.strides",
        ),
        (
            {"training.batch_size": "4..7"},
            {},
            "sweep.space.training.batch_size int 4..7: training.batch_size 7: must be a multiple",
        ),
        ({"loss.gamma": "0..1", "loss.gamma+loss.alpha": [[0, 0.5]]}, {}, "is searched twice"),
        ({"loss.beta": "none"}, {}, "sweep.space.loss.beta none: sweep.preset none does not"),
    ],
)
def test_the_rules_of_the_configuration_speak(
    entries: dict[str, Any], sections: dict[str, Any], words: str
) -> None:
    assert words in refusal("none", entries, config(**sections))


def test_a_preset_that_the_configuration_refuses_says_how_to_go_on() -> None:
    given = config(augmentation={"photometric": 0.5, "hue": 0.1})
    message = refusal("augmentation", {}, given)
    assert "augmentation.hue 0.1: does nothing where augmentation.photometric is 0" in message
    remedy = "--sweep.space.augmentation.photometric none"
    assert remedy in message
    assert "augmentation.photometric" not in names(
        "augmentation", {"augmentation.photometric": "none"}, given
    )


def test_an_end_is_tried_where_its_condition_holds() -> None:
    # Neither is valid in the configuration as it is: milestones do nothing beside cosine.
    entries = {
        "optimizer.schedule": "[cosine, steps]",
        "optimizer.milestones": "[[0.5, 0.75], [0.25]] when optimizer.schedule=steps",
    }
    assert names("none", entries) == ["optimizer.schedule", "optimizer.milestones"]
    # A chain of conditions.
    entries = {"optimizer.warmup": "0..0.1 when optimizer.milestones=[0.25]", **entries}
    assert names("none", entries)[-1] == "optimizer.warmup"


@pytest.mark.parametrize(
    ("name", "entry", "spelling"),
    [
        ("gamma", "0.5,5.0", "--sweep.space.loss.gamma '0.5..5.0'"),
        ("alpha", [0.1, 0.9], "--sweep.space.loss.alpha '0.1..0.9'"),
        ("learning_rate", "1e-4,0.01", "--sweep.space.optimizer.learning_rate 'log 1e-4..0.01'"),
        ("gamma", "0.5..5", "--sweep.space.loss.gamma '0.5..5'"),
        ("gamma", "wide", "--sweep.space.loss.gamma 'LOW..HIGH'"),
    ],
)
def test_the_old_names_say_the_new_spelling(name: str, entry: Any, spelling: str) -> None:
    message = refusal("focal", {name: entry}, config())
    assert message.startswith(f"sweep.space.{name}: is now the setting") and spelling in message


def test_the_example_of_the_documents_is_a_space() -> None:
    (block,) = [one for one in blocks(ROOT / "docs/how-to/sweep.md") if one.language == "yaml"]
    sweep = yaml_text.parse(block.text)["sweep"]
    space = space_of(sweep["preset"], sweep["space"], config())
    removed = {name for name, entry in sweep["space"].items() if entry == "none"}
    assert {one.name for one in space.dimensions} == set(sweep["space"]) - removed
