"""What a first training is given for its pictures, its boxes and the machine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from cluster.runs.config import TrainSections
from cluster.training.starting_point import (
    Chosen,
    Machine,
    Material,
    choose_start,
    fields_of,
    of_epochs,
)
from cluster.training.step_time import epochs_within, seconds_per_image
from tests.support.box_sets import annotations, centred

LAPTOP, GPU, SMALL_GPU = Machine(cores=2), Machine(16, 1, 140.0), Machine(8, 1, 8.0)


def material(images: int = 205, *, side: float = 100, classes: int = 3) -> Material:
    """Pictures of 480x640 px with square objects of one size."""
    centres_N2 = np.tile([[200.0, 200.0]], (40, 1))
    return Material(images, classes, annotations(centred(centres_N2, side, side)))


def chosen(
    what: Material, machine: Machine, given: Collection[str] = (), **settings: Any
) -> dict[str, Any]:
    sections = TrainSections.model_validate(settings)
    fields = fields_of(choose_start(what, machine, sections, given))
    # They are settings that fit together.
    both = {
        name: {**fields.get(name, {}), **value} if isinstance(value, dict) else value
        for name, value in settings.items()
    }
    TrainSections.model_validate({**fields, **both})
    return fields


def test_two_cores_get_a_small_network_canvas_and_batch() -> None:
    fields = chosen(material(), LAPTOP)
    assert fields["model"] | {"anchors": None} == {
        "backbone": "resnet18",
        "norm": "batch",
        "head_norm": "group",
        "width": 128,
        "anchors": None,
    }
    # 480x640 px on a short side of 320: 320 x 427, rounded up to a multiple of 32.
    assert fields["canvas"] == {"height": 320, "width": 448}
    # 0.0004 x sqrt(4); ten epochs of 205 images are the 2,000 of two cores.
    assert fields["optimizer"]["learning_rate"] == 0.0008
    assert fields["training"] == {"batch_size": 4, "epochs": 10, "evaluate_every": 3}


@pytest.mark.parametrize(
    ("images", "cores", "epochs"),
    # 2,000 images for two cores; ten epochs; 10,000 images at most; three epochs.
    [(50, 2, 40), (10, 2, 100), (1000, 2, 10), (2000, 2, 5), (9000, 2, 3), (205, 8, 40)],
)
def test_the_epochs_follow_the_number_of_pictures(images: int, cores: int, epochs: int) -> None:
    assert chosen(material(images), Machine(cores))["training"]["epochs"] == epochs


@pytest.mark.parametrize(("side", "short"), [(100, 320), (20, 480), (15, 640), (5, 800)])
def test_small_objects_get_a_larger_canvas(side: float, short: int) -> None:
    # An object of 20 px is 13 px on 320, and 20 px on 480; one of 5 px stays small on 800.
    assert chosen(material(side=side), LAPTOP)["canvas"]["height"] == short


def test_a_gpu_gets_the_canvas_of_the_paper_and_a_larger_batch() -> None:
    fields = chosen(material(), GPU)
    assert fields["canvas"] == {"height": 800, "width": 1088}
    assert fields["training"]["batch_size"] == 8
    assert chosen(material(), SMALL_GPU)["training"]["batch_size"] == 4
    assert fields["model"]["backbone"] == "resnet18" and fields["training"]["epochs"] == 98
    many = chosen(material(6000), GPU)
    assert (many["model"]["backbone"], many["training"]["epochs"]) == ("resnet50", 12)


def test_anchors_are_as_large_as_the_objects() -> None:
    # 8 px on a canvas of 800 for pictures of 480 px: 13 px, below 32 px and near 16 px.
    small = chosen(material(side=8), LAPTOP)["model"]["anchors"]
    assert small["base_sizes"] == (16, 32, 64, 128, 256)
    usual = chosen(material(side=100), LAPTOP)["model"]["anchors"]
    assert usual["base_sizes"] == (32, 64, 128, 256, 512) and usual["ratios"] == (0.5, 1, 2)


def test_few_pictures_get_small_batches() -> None:
    assert chosen(material(12), GPU)["training"]["batch_size"] == 2
    # Eight workers that were asked for: the next multiple of 8 after 4.
    assert chosen(material(), LAPTOP, training={"workers": 8})["training"]["batch_size"] == 8


def test_what_is_given_is_not_chosen() -> None:
    fields = chosen(
        material(),
        LAPTOP,
        given=("training.batch_size", "training.epochs", "optimizer.name", "augmentation.flip"),
        canvas={"height": 64, "width": 96},
        training={"batch_size": 16, "epochs": 3},
    )
    assert "canvas" not in fields and "optimizer" not in fields and "augmentation" not in fields
    assert fields["training"] == {"epochs": 3, "evaluate_every": 1}
    # The given batch has its own rate: 0.0004 x sqrt(16) is above the most.
    batch = {"training": {"batch_size": 16}}
    fields = chosen(material(), LAPTOP, given=("training.batch_size",), **batch)
    assert fields["optimizer"]["learning_rate"] == 0.001


def test_trained_weights_get_the_settings_of_fine_tuning() -> None:
    fields = chosen(material(), LAPTOP, pretrained="weights.pth")
    assert fields["model"] == {"backbone": "resnet50", "norm": "frozen", "frozen_stages": 2}
    assert fields["optimizer"] == {"name": "sgd", "learning_rate": 0.0025}


def test_a_baseline_gets_no_anchors() -> None:
    model = {"architecture": "fcos"}
    assert chosen(material(), LAPTOP, model=model)["model"] == {
        "backbone": "resnet18",
        "norm": "batch",
        "width": 128,
    }


def test_every_line_has_its_reason_and_its_flag() -> None:
    decisions = choose_start(material(), LAPTOP, TrainSections(), ())
    lines = [decision.line() for decision in decisions]
    assert [line.split()[0] for line in lines] == [
        *("model", "canvas", "anchors", "training.batch_size", "training.amp", "adamw", "flips"),
        "training.epochs",
    ]
    assert all(line.endswith((" changes it)", " change it)")) and ": " in line for line in lines)
    assert Chosen({}, "a 1", "b", "--a").line() == "a 1: b (--a changes it)"


def test_a_budget_of_minutes_is_whole_epochs_of_measured_steps() -> None:
    # 30 min are 1,800 s; an epoch of 200 images of 0.4 s takes 80 s: 22.5 of them.
    assert epochs_within(30, images=200, seconds_each=0.4) == 22
    assert epochs_within(1, images=200, seconds_each=4) == 1
    assert of_epochs(22, "").fields["training"]["evaluate_every"] == 6


def test_a_step_is_measured_in_a_process_of_its_own() -> None:
    small = {
        "model": {"backbone": "resnet18", "width": 64},
        "canvas": {"height": 64, "width": 96},
        "training": {"batch_size": 2},
    }
    each = seconds_per_image(TrainSections.model_validate(small), classes=3, gpus=0)
    assert 0 < each < 600
