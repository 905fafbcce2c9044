"""Each recipe is a configuration that its verb takes, and the paper's recipes say what the paper
says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import UsageError
from detector.anchors import anchor_grid
from detector.baselines import build_model
from detector.optimizer import learning_rate_factor
from detector.placement import evaluation_sample
from pipelines.command_line import parse, read_yaml
from pipelines.run_config import RunConfig
from pipelines.train import TrainVerb

RECIPES = sorted((Path(__file__).parents[2] / "pipelines/recipes").glob("*.yaml"))
PAPER = [path for path in RECIPES if path.name.startswith("paper_")]
COCO_IMAGES = 118_287  # train2017


def as_tuples(value: Any) -> Any:
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def recipe(path: Path) -> TrainVerb | RunConfig:
    """Parsed as the command line does it: with the shard sets as flags, or by `run` where the
    recipe names pictures and annotations itself.
    """
    if "data" in read_yaml(str(path)):
        return parse(RunConfig, ["--config", str(path)])
    return parse(
        TrainVerb,
        [
            "--config",
            str(path),
            "--data.train",
            "a",
            "--data.val",
            "b",
            "--pretrained",
            "resnet50.pth",
        ],
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_configuration(path: Path):
    config = recipe(path)
    given = read_yaml(str(path))
    for section in ("canvas", "optimizer", "training"):
        written = {name: as_tuples(value) for name, value in given[section].items()}
        assert written == {name: getattr(getattr(config, section), name) for name in written}


def test_flags_vary_a_recipe(monkeypatch: pytest.MonkeyPatch):
    small = [
        "--config",
        str(RECIPES[0].with_name("small_r18.yaml")),
        "--data.train",
        "a",
        "--data.val",
        "b",
    ]
    assert parse(
        TrainVerb, [*small, "--model.width", "64", "--model.anchors.scales", "1,1.4142"]
    ).model.anchors.scales == (1.0, 1.4142)
    assert parse(TrainVerb, [*small, "--model.width", "64"]).model.width == 64
    monkeypatch.setenv("RETINARAY_MODEL__WIDTH", "256")
    assert parse(TrainVerb, small).model.width == 256
    with pytest.raises(UsageError, match="model.width .*65.*: must be 64, 128 or 256"):
        parse(TrainVerb, [*small, "--model.width", "65"])


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_schedule(path: Path):
    # Section 4.1: 16 images a step, 90k steps at 0.01, a tenth of it from 60k and a hundredth from
    # 80k, decay 1e-4, momentum 0.9; 1.5x in Table 2.
    config = recipe(path)
    optimizer, longer = config.optimizer, 1.5 if "1_5x" in path.stem else 1.0
    assert config.training.batch_size == 16
    assert (
        optimizer.name,
        optimizer.learning_rate,
        optimizer.momentum,
        optimizer.weight_decay,
    ) == ("sgd", 0.01, 0.9, 1e-4)
    total = config.training.epochs * COCO_IMAGES
    # Whole epochs: 12 x 118,287 / 16 = 88,715 steps, 1.4 % short of 90,000.
    assert total / 16 == pytest.approx(90_000 * longer, rel=0.015)
    schedule = dict(
        schedule=optimizer.schedule, warmup=optimizer.warmup, milestones=optimizer.milestones
    )
    shares = (0.01, 59.9 / 90, 60.1 / 90, 79.9 / 90, 80.1 / 90)
    rates = [
        optimizer.learning_rate * learning_rate_factor(share * total, total, **schedule)
        for share in shares
    ]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])
    assert optimizer.warmup * total / 16 == pytest.approx(500, rel=0.02)
    # The short side is 800 px, from 640 px up where it is jittered, and the long one at most 1333:
    # no canvas cuts that.
    assert config.augmentation.short_sides == ((640, 800) if longer > 1 else (800, 800))
    canvases, long_side = config.canvas.canvases, config.canvas.long_side
    assert (800, 1344) in canvases and (1344, 800) in canvases and long_side == 1333
    # By hand, as Detectron resizes: 800 px unless the longer side then passes 1333.
    by_hand = [
        (480, 640, (800, 1067)),
        (427, 640, (800, 1199)),
        (300, 640, (625, 1333)),
        (640, 300, (1333, 625)),
        (100, 100, (800, 800)),
    ]
    for height, width, shown in by_hand:
        for size in ((height, width), (10 * height, 10 * width)):
            sample = evaluation_sample(
                np.zeros((*size, 3), np.uint8), 1, canvases=canvases, long_side=long_side
            )
            assert sample.size == shown


def test_the_six_anchors_of_table_1c():
    config, usual = (
        recipe(RECIPES[0].with_name(f"paper_r50_1x{name}.yaml")) for name in ("_6_anchors", "")
    )
    with torch.device("meta"):
        network = build_model(
            classes=80,
            **config.model.model_dump(exclude={"anchors"}),
            **config.model.anchors.model_dump(),
        )
    assert (
        len(network.box_head.output.bias) == 6 * 4 and len(network.class_head.output.bias) == 6 * 80
    )
    # Two positions of P3, 2 x 3 anchors at each: areas 32^2 and 2 * 32^2, heights over widths 1/2,
    # 1 and 2.
    shapes = config.model.anchors.model_dump()
    first = anchor_grid(64, 96, **shapes)[0][:12].view(2, 6, 4)
    widths, heights = first[..., 2] - first[..., 0], first[..., 3] - first[..., 1]
    torch.testing.assert_close(widths * heights, torch.tensor([[1024.0, 2048.0] * 3] * 2))
    torch.testing.assert_close(heights / widths, torch.tensor([[0.5, 0.5, 1.0, 1.0, 2.0, 2.0]] * 2))
    # Nothing else differs.
    assert config.model_copy(update={"model": usual.model}) == usual
    assert config.model.model_copy(update={"anchors": usual.model.anchors}) == usual.model


def test_the_paper_has_three_backbones():
    assert {recipe(path).model.backbone for path in PAPER} == {
        "resnet50",
        "resnet101",
        "resnext101_32x8d",
    }
