"""Images prefer the canvas on which they become largest, and what is found on it comes back in
their own frame, exact at the borders.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cluster.runs.config import TrainConfig
from detector.augment import training_sample
from detector.batch import Sample, collate_by_canvas, collate_pictures
from detector.boxes import encode
from detector.decode import Detections
from detector.image_config import AugmentationConfig, CanvasConfig
from detector.model import RetinaNet
from detector.model_config import AnchorConfig, ModelConfig
from detector.placement import PAD_PIXEL, evaluation_sample, fit_scale, preferred_canvas
from detector.predict import Predictor, rescale
from detector.training_config import OptimizerConfig

PAPER = [(800, 1088), (800, 1344), (1344, 800)]
CANVASES = [(64, 96), (96, 64), (64, 160)]
SIZES = [
    (427, 640),
    (1, 300),
    (640, 427),
    (300, 1),
    (1, 1),
    (53, 31),
    (97, 129),
    (31, 997),
    (480, 640),
    (161, 63),
]
DECODE = {"score_threshold": 0.5, "top_per_level": 10, "nms_threshold": 0.5, "max_detections": 5}


@pytest.mark.parametrize(
    ("height", "width", "canvas"),
    [
        (
            480,
            640,
            (800, 1088),
        ),  # 5/3 on both wide ones, as 800 / 480 is below 1088 / 640 = 1.7: the smaller one
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
    """Finds, in every image, class 0 far beyond the canvas on all sides and class 1 around the red
    pixels.
    """

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, int]] = []
        self.pixel_mean = torch.zeros(1)
        self._grids: dict = {}

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
            boxes[i, 1] = (
                torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
                if len(xs)
                else torch.tensor([0.0, 0.0, 1.0, 1.0])
            )
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
    found = Predictor(model, canvases=CANVASES, decode=DECODE, amp=False, batch_size=batch_size)(
        pictures
    )
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
    assert sorted(model.shapes) == sorted(
        CANVASES[preferred_canvas(*size, CANVASES)] for size in SIZES
    )
    assert set(model.shapes) == set(CANVASES)


def test_every_border_stays_exactly_where_it_is():
    for original in [*range(1, 40), 375, 427, 480, 500, 640, 997]:
        for shown in range(1, 161):
            found = Detections(
                np.array([[0, 0, shown, shown]], np.float32),
                np.ones(1, np.float32),
                np.zeros(1, np.int64),
            )
            assert rescale(
                found, (float(shown), float(shown)), (original, original)
            ).boxes_N4.tolist() == [[0, 0, original, original]]


@pytest.mark.parametrize("size", SIZES)
def test_an_evaluation_sample_is_on_its_canvas_and_touches_two_sides_of_it(size):
    sample = evaluation_sample(np.full((*size, 3), 9, np.uint8), 1, canvases=CANVASES)
    canvas = CANVASES[preferred_canvas(*size, CANVASES)]
    assert sample.image.shape == (3, *canvas)
    height, width = sample.size
    assert height == canvas[0] or width == canvas[1]
    assert (sample.image[:, :height, :width] == 9).all()
    for channel, value in enumerate(PAD_PIXEL):
        assert (sample.image[channel, height:] == value).all() and (
            sample.image[channel, :, width:] == value
        ).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("long_side", [40, 96, 130])
def test_the_longer_side_stays_within_long_side(size, long_side):
    sample = evaluation_sample(
        np.full((*size, 3), 9, np.uint8), 1, canvases=CANVASES, long_side=long_side
    )
    free = evaluation_sample(np.full((*size, 3), 9, np.uint8), 1, canvases=CANVASES)
    assert max(sample.size) == min(long_side, max(free.size))
    # The same picture otherwise: its sides in proportion, to the pixel.
    factor = max(sample.size) / max(size)
    assert [
        abs(shown - max(1, side * factor)) <= 0.5
        for shown, side in zip(sample.size, size, strict=True)
    ] == [True, True]
    # Where several canvases leave it alike, the smallest is taken: all hold 64 px squares, two 96
    # px.
    areas = [
        height * width
        for height, width in CANVASES
        if fit_scale(*size, (height, width), long_side=long_side) == factor_of(size, long_side)
    ]
    assert sample.image.shape[1] * sample.image.shape[2] == min(areas)


def factor_of(size: tuple[int, int], long_side: int) -> float:
    return max(fit_scale(*size, canvas, long_side=long_side) for canvas in CANVASES)


def test_predictors_and_training_respect_long_side(tmp_path):
    picture, model = np.zeros((80, 100, 3), np.uint8), SeesRed()
    for long_side, shown in ((None, 80), (50, 50)):
        predictor = Predictor(
            model, canvases=CANVASES, long_side=long_side, decode=DECODE, amp=False
        )
        sizes = []
        predictor.detect = lambda batch, sizes_, seen=sizes: [
            seen.append(batch.sizes_B2[0].tolist())
        ]
        predictor([picture])
        assert max(sizes[0]) == shown
        for settings in ({}, {"short_sides": (64, 64)}):
            sample = training_sample(
                picture,
                np.zeros((0, 4), np.float32),
                np.zeros(0, np.int64),
                1,
                canvas=(64, 96),
                long_side=long_side,
                generator=np.random.default_rng(0),
                **settings,
            )
            assert max(sample.size) == shown


def pair(image_id: int, canvas: tuple[int, int]) -> tuple[Sample, tuple[int, int]]:
    sample = Sample(
        torch.zeros(3, *canvas, dtype=torch.uint8),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        canvas,
        image_id,
    )
    return sample, (image_id, 2 * image_id)


def test_batches_have_one_canvas_and_every_sample_once():
    wide, high = CANVASES[:2]
    pairs = [pair(i, high if i in (2, 5, 6) else wide) for i in range(1, 9)]
    batches = list(collate_by_canvas(pairs, 2))
    # Wide 1 3 and 4 7 fill, then high 2 5 at 5; 8 and 6 are left.
    assert [batch.image_ids.tolist() for batch, _ in batches] == [[1, 3], [2, 5], [4, 7], [6], [8]]
    assert [tuple(batch.images.shape[2:]) for batch, _ in batches] == [wide, high, wide, high, wide]
    assert [sizes for _, sizes in batches][:2] == [[(1, 2), (3, 6)], [(2, 4), (5, 10)]]


def test_views_of_as_many_pictures_as_a_batch_has_share_batches():
    wide, high = CANVASES[:2]
    # Each number is a picture, its first view on its own canvas.
    one = [pair(1, wide), *[pair(1, high)] * 3]
    two = [pair(2, wide), pair(2, high)]
    other, last = [pair(3, high), pair(3, wide)], [pair(4, wide)]
    for pictures in ([one, two, other, last], [one, other, two, last]):
        batches = list(collate_pictures(pictures, 2))
        assert all(
            tuple(batch.images.shape[2:]) in (wide, high)
            and [size[0] for size in sizes] == batch.image_ids.tolist()
            for batch, sizes in batches
        )
        # 1 and 2 fill their batches, 3 begins on the other canvas, and 4 comes after two pictures
        # of its own.
        assert sorted(batch.image_ids.tolist() for batch, _ in batches) == [
            [1, 1],
            [1, 2],
            [1, 2],
            [3],
            [3],
            [4],
        ]


def test_one_canvas_or_up_to_three():
    assert CanvasConfig(height=96, width=128).canvases == ((96, 128),)
    several = CanvasConfig(shapes=[[800, 1088], [800, 1344], [1344, 800]], long_side=1333)
    assert list(several.canvases) == PAPER
    assert CanvasConfig(**json.loads(several.model_dump_json())) == several


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (dict(height=801), "canvas.height 801: must be a multiple of 32; the next one is 832"),
        (
            dict(shapes=[(800, 1088), (800, 1350)]),
            r"canvas.shapes\[1\] width 1350: must be a multiple of 32; the next one is 1376",
        ),
        (
            dict(shapes=[(8192, 96)]),
            (
                r"canvas.shapes\[0\] height 8192: must be within 64..4096 px; the paper uses"
                r" 800 and 1344"
            ),
        ),
        (dict(shapes=[(64, 64)]), "canvas 64x64: one side must be above 64 px"),
        (
            dict(shapes=[*PAPER, (96, 96)]),
            (
                "canvas.shapes 800x1088 800x1344 1344x800 96x96: must be at most 3 different"
                " ones.*remove some"
            ),
        ),
        (
            dict(shapes=[(96, 64), (96, 64)]),
            "canvas.shapes 96x64 96x64: must be at most 3 different ones",
        ),
    ],
)
def test_invalid_canvases_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        CanvasConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            dict(short_sides=(800, 640)),
            "augmentation.short_sides 800,640: must be LOW,HIGH px with 1 <= LOW <= HIGH",
        ),
        (dict(iou_minima=(0.5, 1.5)), r"augmentation.iou_minima 0.5,1.5: must be within 0..1"),
        (dict(scale_min=0.05), "scale_min"),
        (dict(hue=0.7), "hue"),
    ],
)
def test_invalid_augmentations_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        AugmentationConfig(**settings)


IGNORED = [
    (
        CanvasConfig,
        dict(shapes=PAPER, height=96),
        "canvas.height 96: does nothing beside canvas.shapes.*; leave it at null, or set",
    ),
    (CanvasConfig, dict(shapes=PAPER, width=96), "canvas.width 96"),
    (
        CanvasConfig,
        dict(shapes=PAPER, long_side=1344),
        "canvas.long_side 1344: does nothing where no canvas .* 1344 px; leave it at null, or",
    ),
    (
        CanvasConfig,
        dict(height=320, width=448, long_side=1333),
        "canvas.long_side 1333: does nothing where no canvas is longer than 448 px",
    ),
    (
        AugmentationConfig,
        dict(short_sides=(640, 800), scale_min=0.5),
        "augmentation.scale_min 0.5: does nothing beside augmentation.short_sides",
    ),
    (AugmentationConfig, dict(short_sides=(640, 800), scale_max=2.0), "augmentation.scale_max 2"),
    (
        AugmentationConfig,
        dict(iou_minima=(0.5, 0.7)),
        "augmentation.iou_minima 0.5,0.7: does nothing where augmentation.iou_crop is 0",
    ),
    (
        AugmentationConfig,
        dict(brightness=0.3),
        (
            "augmentation.brightness 0.3: does nothing where augmentation.photometric is 0; leave"
            " it at 0.125"
        ),
    ),
    (AugmentationConfig, dict(contrast=0.3), "augmentation.contrast"),
    (AugmentationConfig, dict(saturation=0.3), "augmentation.saturation"),
    (AugmentationConfig, dict(hue=0.1), "augmentation.hue"),
    (
        OptimizerConfig,
        dict(milestones=(0.5,)),
        (
            "optimizer.milestones 0.5: .*schedule is cosine; leave it at 0.6667,0.8889, or set .*"
            " to steps"
        ),
    ),
    (
        ModelConfig,
        dict(
            p6_from="p5", anchors=AnchorConfig(strides=(4, 8, 16, 32), base_sizes=(16, 32, 64, 128))
        ),
        (
            "model.p6_from p5: does nothing where model.anchors.strides are 4,8,16,32; leave it at"
            " c5, or add 64"
        ),
    ),
]


@pytest.mark.parametrize(
    ("section", "settings", "complaint"),
    IGNORED,
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_setting_without_effect_is_refused(section, settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        section(**settings)


TRAINING = dict(data={"train": "t", "val": "v"}, canvas={"shapes": [[320, 448], [448, 256]]})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        # A worker has a single picture, which finds no other to be blended with.
        (
            {"augmentation": {"mixup": 0.5}, "training": {"batch_size": 2, "workers": 2}},
            (
                "augmentation.mixup 0.5: does nothing where a worker has one image a step; leave it"
                " at 0, or raise training.batch_size"
            ),
        ),
        (
            {"augmentation": {"short_sides": (321, 800)}},
            "augmentation.short_sides 321,800: the canvas holds short sides of at most 320 px",
        ),
    ],
)
def test_an_augmentation_without_room_is_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        TrainConfig(**TRAINING, **settings)


def test_an_augmentation_with_room_is_accepted():
    TrainConfig(
        **TRAINING,
        augmentation={"mixup": 0.5, "short_sides": (320, 800)},
        training={"batch_size": 4, "workers": 2},
    )
    TrainConfig(**TRAINING, augmentation={"mosaic": 0.5}, training={"batch_size": 2, "workers": 2})


def test_a_setting_with_an_effect_is_accepted():
    AugmentationConfig(
        iou_crop=0.5, iou_minima=(0.5,), photometric=0.5, brightness=0.3, hue=0.1, scale_min=0.5
    )
    OptimizerConfig(schedule="steps", milestones=(0.5,))
    ModelConfig(
        p6_from="p5", anchors=AnchorConfig(strides=(8, 16, 32, 64), base_sizes=(16, 32, 64, 128))
    )
    # What a configuration says of itself is a configuration again, defaults that do nothing and
    # all.
    for whole in (
        AugmentationConfig(short_sides=(640, 800)),
        CanvasConfig(shapes=PAPER),
        OptimizerConfig(),
    ):
        assert type(whole)(**whole.model_dump()) == whole
