"""DETR: parameters as published, place codes, assignment and loss by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, generalized_box_iou

from detector.baseline import Objects
from detector.detr import QUERIES, QueryDetector, assign, detr, detr_dc5, layer_loss, place_code
from tests.detector.toy import toy_backbones


@pytest.fixture(scope="module", autouse=True)
def _toys():
    with toy_backbones():
        yield


def small(build=detr) -> QueryDetector:
    torch.manual_seed(0)
    return build(classes=2, backbone="toy", width=64, norm="group")


@pytest.mark.parametrize("build", [detr, detr_dc5])
def test_the_network_of_coco_has_the_published_parameters(build):
    # The authors' training log of DETR-R50 says 41302368, their paper 41 M for it and for DC5
    # (Table 1): 91 classes, fixed normalisation, stem and first stage not trained.
    with torch.device("meta"):
        network = build(classes=91, norm="frozen", frozen_stages=2)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 41_302_368


@pytest.mark.parametrize(("build", "cells"), [(detr, (2, 3)), (detr_dc5, (4, 6))])
def test_every_decoder_layer_answers_for_every_query(build, cells):
    network, images = small(build).eval(), ImageList(torch.randn(2, 3, 64, 96), [(64, 96)] * 2)
    assert network.body(images.tensors)[0].shape[2:] == cells
    logits, boxes = network.outputs(images)
    assert logits.shape == (6, 2, QUERIES, 3) and boxes.shape == (6, 2, QUERIES, 4)
    assert not torch.equal(logits[0], logits[5])


def test_padding_changes_nothing():
    # Values of the backbone beside the padding see it, so that the features are given.
    network = small().eval()
    features = torch.randn(1, 32, 3, 4)
    wide = torch.cat([features, torch.randn(1, 32, 3, 2)], dim=3)
    outputs = []
    for given, columns in ((features, 4), (wide, 6)):
        network.body.forward = lambda _, given=given: [given]
        images = ImageList(torch.zeros(1, 3, 96, 32 * columns), [(96, 128)])
        with torch.no_grad():
            outputs.append(network.outputs(images))
    for plain, padded in zip(*outputs, strict=True):
        torch.testing.assert_close(plain, padded, rtol=1e-4, atol=1e-5)


def test_place_codes_by_hand():
    code = place_code(torch.zeros(1, 2, 4, dtype=torch.bool), 8)
    assert code.shape == (1, 8, 8)
    # Second row of two, third column of four: the angles are 2 pi * 2 / 2 and 2 pi * 3 / 4. Of the
    # four channels of an axis the pairs have the periods 1 and 10000^(2 / 4) = 100.
    y, x = 2 * math.pi, 1.5 * math.pi
    expected = [f(a / p) for a in (y, x) for p in (1, 100) for f in (math.sin, math.cos)]
    torch.testing.assert_close(code[0, 4 + 2], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_the_assignment_has_the_least_cost():
    torch.manual_seed(1)
    logits_QK, boxes_Q4 = torch.randn(5, 3), torch.rand(5, 4) * 0.4 + 0.2
    objects = Objects(torch.rand(3, 4) * 0.4 + 0.2, torch.tensor([0, 1, 1]))

    def cost(query: int, number: int) -> float:
        mine, true = boxes_Q4[query], objects.boxes_N4[number]
        corners = [box_convert(box[None], "cxcywh", "xyxy") for box in (mine, true)]
        return (
            -logits_QK[query].softmax(0)[objects.labels_N[number]]
            + 5 * (mine - true).abs().sum()
            - 2 * generalized_box_iou(*corners)[0, 0]
        ).item()

    best = min(
        itertools.permutations(range(5), 3),
        key=lambda queries: sum(cost(q, n) for n, q in enumerate(queries)),
    )
    query_N, object_N = assign(logits_QK, boxes_Q4, objects)
    assert dict(zip(object_N.tolist(), query_N.tolist(), strict=True)) == dict(enumerate(best))


def test_loss_by_hand():
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 1] = math.log(2)
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.9, 0.9, 0.1, 0.1]]])
    objects = [Objects(torch.tensor([[0.5, 0.5, 0.2, 0.4]]), torch.tensor([1]))]
    classification, box = layer_loss(logits, boxes, objects)
    # The first query has the object, p = 2 / 4; the second none, p = 1 / 3, which weighs 0.1.
    expected = (math.log(2) + 0.1 * math.log(3)) / 1.1
    assert classification.item() == pytest.approx(expected, rel=1e-5)
    # L1 0.2; the object lies inside the box and fills half of it: GIoU = IoU = 0.5.
    assert box.item() == pytest.approx(5 * 0.2 + 2 * 0.5, rel=1e-5)


def test_all_layers_have_a_loss():
    network = small().eval()
    images = ImageList(torch.randn(1, 3, 64, 96), [(64, 96)])
    objects = [Objects(torch.tensor([[8.0, 16.0, 40.0, 48.0]]), torch.tensor([1]))]
    logits, boxes = network.outputs(images)
    shares = [Objects(torch.tensor([[24 / 96, 0.5, 32 / 96, 0.5]]), torch.tensor([1]))]
    layers = [layer_loss(*layer, shares) for layer in zip(logits, boxes, strict=True)]
    for total, column in zip(
        network.losses(images, objects), zip(*layers, strict=True), strict=True
    ):
        assert total.item() == pytest.approx(sum(part.item() for part in column), rel=1e-4)
