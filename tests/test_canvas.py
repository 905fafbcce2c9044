"""Images prefer the canvas on which they become largest, and what is found on it comes back in their own frame, exact at the borders."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from detector.augment import PAD_PIXEL, evaluation_sample, preferred_canvas
from detector.batch import Sample, collate_by_canvas
from detector.boxes import encode
from detector.config import AugmentationConfig, CanvasConfig
from detector.decode import Detections
from detector.model import RetinaNet
from detector.predict import Predictor, rescale

PAPER = [(800, 1088), (800, 1344), (1344, 800)]
CANVASES = [(64, 96), (96, 64), (64, 160)]
SIZES = [(427, 640), (1, 300), (640, 427), (300, 1), (1, 1), (53, 31), (97, 129), (31, 997), (480, 640), (161, 63)]
DECODE = {"score_threshold": 0.5, "top_per_level": 10, "nms_threshold": 0.5, "max_detections": 5}


@pytest.mark.parametrize(
    ("height", "width", "canvas"),
    [
        (480, 640, (800, 1088)),  # 5/3 on both wide ones, as 800 / 480 is below 1088 / 640 = 1.7: the smaller one
        (427, 640, (800, 1344)),  # 800 / 427 = 1.87, but 1088 / 640 = 1.7
        (640, 480, (1344, 800)),
        (500, 500, (800, 1088)),  # 1.6 everywhere
        (1, 3000, (800, 1344)),
        (3000, 1, (1344, 800)),
    ],
)
def test_preferred_canvas_by_hand(height, width, canvas):
    assert PAPER[preferred_canvas(height, width, PAPER)] == canvas
    # In whatever order the canvases are listed.
    assert PAPER[::-1][preferred_canvas(height, width, PAPER[::-1])] == canvas


class SeesRed(torch.nn.Module):
    """Finds, in every image, class 0 far beyond the canvas on all sides and class 1 around the red pixels."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, int]] = []
        self.pixel_mean = torch.zeros(1)
        self.grids: dict = {}

    detect = RetinaNet.detect

    def anchors(self, height: int, width: int) -> list[torch.Tensor]:
        return [torch.tensor([[0.0, 0.0, width, height]] * 2)]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shapes += [tuple(images.shape[2:])] * len(images)
        logits = torch.full((len(images), 2, 2), -20.0)
        logits[:, 0, 0], logits[:, 1, 1] = 9.0, 8.0
        boxes = torch.zeros(len(images), 2, 4)
        for i, image in enumerate(images):
            ys, xs = torch.nonzero(image[0].int() - image[2].int() > 100, as_tuple=True)
            boxes[i, 0] = torch.tensor([-300.0, -300.0, 900.0, 900.0])
            boxes[i, 1] = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float() if len(xs) else torch.tensor([0.0, 0.0, 1.0, 1.0])
        return logits, encode(boxes, self.anchors(*images.shape[2:])[0])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_detections_come_back_in_order_and_in_each_pictures_own_frame(batch_size):
    model = SeesRed()
    pictures, boxes = [], []
    for height, width in SIZES:
        box = (width // 4, height // 3, width - width // 5, height - height // 4)
        picture = np.zeros((height, width, 3), np.uint8)
        picture[..., 2] = 200
        picture[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
        pictures.append(picture)
        boxes.append(box)
    found = Predictor(model, canvases=CANVASES, decode=DECODE, amp=False, batch_size=batch_size)(pictures)
    assert len(found) == len(pictures)
    for its, (height, width), box in zip(found, SIZES, boxes, strict=True):
        assert its.labels_N.tolist() == [0, 1]
        assert its.boxes_N4[0].tolist() == [0, 0, width, height]
        canvas = CANVASES[preferred_canvas(height, width, CANVASES)]
        # A pixel of the canvas is this many of the picture's.
        pixel = max(1.0, height / canvas[0], width / canvas[1])
        if min(height, width) > 1:
            np.testing.assert_allclose(its.boxes_N4[1], box, atol=1.01 * pixel)
    # Each picture once, on the canvas it prefers.
    assert sorted(model.shapes) == sorted(CANVASES[preferred_canvas(*size, CANVASES)] for size in SIZES)
    assert set(model.shapes) == set(CANVASES)


def test_every_border_stays_exactly_where_it_is():
    for original in [*range(1, 40), 375, 427, 480, 500, 640, 997]:
        for shown in range(1, 161):
            found = Detections(np.array([[0, 0, shown, shown]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
            assert rescale(found, (float(shown), float(shown)), (original, original)).boxes_N4.tolist() == [[0, 0, original, original]]


@pytest.mark.parametrize("size", SIZES)
def test_an_evaluation_sample_is_on_its_canvas_and_touches_two_sides_of_it(size):
    sample = evaluation_sample(np.full((*size, 3), 9, np.uint8), 1, canvases=CANVASES)
    canvas = CANVASES[preferred_canvas(*size, CANVASES)]
    assert sample.image.shape == (3, *canvas)
    height, width = sample.size
    assert height == canvas[0] or width == canvas[1]
    assert (sample.image[:, :height, :width] == 9).all()
    for channel, value in enumerate(PAD_PIXEL):
        assert (sample.image[channel, height:] == value).all() and (sample.image[channel, :, width:] == value).all()


def test_batches_have_one_canvas_and_every_sample_once():
    def pair(image_id: int, canvas: tuple[int, int]) -> tuple[Sample, tuple[int, int]]:
        sample = Sample(torch.zeros(3, *canvas, dtype=torch.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), canvas, image_id)
        return sample, (image_id, 2 * image_id)

    wide, high = CANVASES[:2]
    pairs = [pair(i, high if i in (2, 5, 6) else wide) for i in range(1, 9)]
    batches = list(collate_by_canvas(pairs, 2))
    # Wide 1 3 and 4 7 fill, then high 2 5 at 5; 8 and 6 are left.
    assert [batch.image_ids.tolist() for batch, _ in batches] == [[1, 3], [2, 5], [4, 7], [6], [8]]
    assert [tuple(batch.images.shape[2:]) for batch, _ in batches] == [wide, high, wide, high, wide]
    assert [sizes for _, sizes in batches][:2] == [[(1, 2), (3, 6)], [(2, 4), (5, 10)]]


def test_one_canvas_or_up_to_three():
    assert CanvasConfig(height=96, width=128).canvases == ((96, 128),)
    several = CanvasConfig(height=96, width=128, shapes=[[800, 1088], [800, 1344], [1344, 800]])
    assert list(several.canvases) == PAPER
    assert CanvasConfig(**json.loads(several.model_dump_json())) == several


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (dict(height=801), "canvas.height 801: must be a multiple of 32; 832 holds it"),
        (dict(shapes=[(800, 1088), (800, 1350)]), r"canvas.shapes\[1\] width 1350: must be a multiple of 32; 1376 holds it"),
        (dict(shapes=[(8192, 96)]), r"canvas.shapes\[0\] height 8192: must be within 64..4096 px; 800 and 1344 are the paper's"),
        (dict(shapes=[(64, 64)]), "canvas 64x64: one side must be above 64 px"),
        (dict(shapes=[*PAPER, (96, 96)]), "canvas.shapes 800x1088 800x1344 1344x800 96x96: must be at most 3 different ones.*leave some out"),
        (dict(shapes=[(96, 64), (96, 64)]), "canvas.shapes 96x64 96x64: must be at most 3 different ones"),
    ],
)
def test_canvases_that_do_not_go_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        CanvasConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (dict(short_sides=(800, 640)), "augmentation.short_sides 800,640: must be LOW,HIGH px with 1 <= LOW <= HIGH"),
        (dict(short_sides=(640, 800), long_side=700), "augmentation.long_side 700; 640,800 with 1333 is the paper's"),
        (dict(iou_minima=(0.5, 1.5)), r"augmentation.iou_minima 0.5,1.5: an IoU is within 0..1"),
        (dict(scale_min=0.05), "scale_min"),
        (dict(hue=0.7), "hue"),
    ],
)
def test_augmentations_that_do_not_go_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        AugmentationConfig(**settings)
