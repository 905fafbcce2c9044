"""One step of a worker, for RetinaNet and a baseline; and the model wrapped for several ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cluster.training.ranks import Ranks
from cluster.training.step import TrainingStep, distribute
from detector.baselines import build_model
from detector.batch import Batch, Sample, collate
from detector.choices import LossSettings
from detector.optimizer import build_optimizer

ALONE = Ranks(0, 1, torch.device("cpu"))
CANVAS = (64, 96)
MODEL = {
    "classes": 2,
    "backbone": "resnet18",
    "width": 64,
    "norm": "batch",
    "base_sizes": (8, 16, 32, 64, 128),
    "p6_from": "p5",
    "head_norm": "none",
}


def one_object() -> Batch:
    pixels = np.random.default_rng(5).integers(0, 256, (3, *CANVAS), dtype=np.uint8)
    boxes = np.array([[8, 8, 40, 40]], np.float32)
    return collate([Sample(torch.from_numpy(pixels), boxes, np.array([1]), CANVAS, 3)])


@pytest.mark.parametrize("architecture", ["retinanet", "fcos"])
def test_a_step_trains_either_network(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture=architecture, **MODEL)
    model.train()
    optimizer = build_optimizer(
        model, name="sgd", learning_rate=0.0, weight_decay=0.0, momentum=0.9
    )
    step = TrainingStep(
        model,
        model,
        optimizer,
        ranks=ALONE,
        parts=1,
        loss=LossSettings(),
        clip_norm=10.0,
        amp_dtype=None,
        canvases=[CANVAS],
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    numbers = step(one_object(), learning_rate=0.01, loss_normalizer=1.0).read()
    assert numbers.classification > 0 and numbers.positives >= 1
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_gradients_are_views_of_what_is_sent_and_running_statistics_stay_local() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = distribute(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)))
        for _ in range(2):
            network.zero_grad(set_to_none=True)
            network(torch.ones(2, 3, 8, 8)).sum().backward()
        assert not network.will_sync_module_buffers()
    finally:
        dist.destroy_process_group()
    # Four parameters, one bucket: no second copy of the gradients.
    assert (
        len({parameter.grad.untyped_storage().data_ptr() for parameter in network.parameters()})
        == 1
    )
