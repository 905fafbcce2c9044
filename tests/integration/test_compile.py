"""Compiled, network and loss are the same function, and make the same step: one program for the
canvas, whatever is on it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cluster.training.timing import Timing
from detector.anchors import match
from detector.choices import LossSettings
from detector.loss import dense_loss, detection_loss
from detector.optimizer import build_optimizer
from detector.step import compiled_parts, train_step
from tests.detector.test_golden_losses import network, two_pictures

pytestmark = [
    pytest.mark.integration,
    # torch's compiler looks for a gradient at tensors that have none.
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
    ),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_the_compiled_loss_has_the_value_and_gradient_of_the_plain_one():
    """Of the other kinds; the default ones are compiled in the next test."""
    model, batch = network(), two_pictures()
    anchors = torch.cat(model.anchors(64, 96))
    ends = [len(level) for level in model.anchors(64, 96)]
    slots = match(anchors, batch.boxes_BG4, batch.labels_BG)
    generator = torch.Generator().manual_seed(0)
    logits, deltas = (
        torch.randn(2, len(anchors), 3, generator=generator),
        0.1 * torch.randn(2, len(anchors), 4, generator=generator),
    )
    found = []
    for dense in (None, torch.compile(dense_loss, dynamic=False)):
        inputs = [logits.clone().requires_grad_(), deltas.clone().requires_grad_()]
        levels = [tensor.split(ends, dim=1) for tensor in inputs]
        sums = detection_loss(
            *levels,
            anchors,
            batch.boxes_BG4,
            batch.labels_BG,
            slots,
            settings=LossSettings(classification="cross_entropy", box="ciou"),
            dense=dense,
        )
        (sums.classification_B.sum() + 2 * sums.box_B.sum()).backward()
        found.append([*sums, *(tensor.grad for tensor in inputs)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_compiled_step_is_the_step_and_is_compiled_once():
    full = two_pictures()
    # Other objects and more slots: none of the shapes that are compiled.
    few = replace(full, boxes_BG4=torch.zeros(2, 32, 4), labels_BG=torch.full((2, 32), -1))
    reports = []
    for compiled in (False, True):
        model = network()
        anchors = torch.cat(model.anchors(64, 96))
        optimizer = build_optimizer(
            model, name="sgd", learning_rate=0.01, weight_decay=1e-4, momentum=0.9
        )
        # The network by the half of the compiler that traces it and its gradient: the half that
        # writes C++ for a hundred layers takes minutes.
        run = torch.compile(model, dynamic=False, backend="aot_eager") if compiled else model
        settings = dict(
            loss=LossSettings(),
            learning_rate=0.01,
            clip_norm=10.0,
            amp_dtype=None,
            **(compiled_parts(LossSettings()) if compiled else {}),
        )
        torch._dynamo.utils.counters.clear()
        timing, steps = Timing(torch.device("cpu")), []
        for batch in timing.batches([full, full, few]):
            # As a worker does, which listens to the forward pass of whichever network it has.
            with timing.step(run):
                steps.append(train_step(run, optimizer, batch, anchors, **settings).read())
        assert timing.take().forward_seconds > 0
        if compiled:
            assert (
                torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
                and not torch._dynamo.utils.counters["graph_break"]
            )
        reports.append([(s.classification, s.box, s.positives, s.gradient_norm) for s in steps])
    for one, other in zip(*reports, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
