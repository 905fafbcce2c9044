from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.loading.evaluation_batches import evaluation_batches
from cluster.loading.prefetch import ordered_map
from cluster.shards.index import ShardSet
from detector.choices import WHOLE_PICTURE, ViewSettings
from detector.decode import DecodeSettings, Detections
from detector.image import open_image
from detector.predict import Predictor
from detector.tiling import View, views_of

# Ray Data would start a Ray of its own, beside which no later test could start the session's.
pytestmark = pytest.mark.usefixtures("ray_cluster")

CANVAS = (64, 96)


def test_evaluation_takes_every_row_once_with_its_own_size(shard_set: ShardSet) -> None:
    from cluster.scoring.truths import read_truths

    sizes = {t.image_id: (t.height, t.width) for t in read_truths(shard_set)}
    found: dict[int, tuple[int, int]] = {}
    for rank in range(3):
        for batch, views in evaluation_batches(
            shard_set, rank=rank, ranks=3, batch=5, canvases=[CANVAS]
        ):
            for image_id, view in zip(batch.image_ids.tolist(), views, strict=True):
                assert image_id not in found and view.is_whole
                found[image_id] = view.size
    assert found == sizes


def test_every_view_comes_once_and_pictures_share_batches(shard_set: ShardSet) -> None:
    from cluster.scoring.truths import read_truths

    settings = ViewSettings(tile=230, overlap=0.1)
    expected = {
        (truth.image_id, view)
        for truth in read_truths(shard_set)
        for view in views_of(truth.height, truth.width, settings)
    }
    batches: dict[int, list[list[tuple[int, View]]]] = {}
    for ranks in (1, 2):
        batches[ranks] = [
            list(zip(batch.image_ids.tolist(), views, strict=True))
            for rank in range(ranks)
            for batch, views in evaluation_batches(
                shard_set,
                rank=rank,
                ranks=ranks,
                batch=5,
                canvases=[CANVAS],
                threads=2,
                settings=settings,
            )
        ]
    seen = [pair for batch in batches[1] for pair in batch]
    assert len(seen) == len(expected) > 24 * 2 and set(seen) == expected
    assert batches[1] == batches[2]
    # 24 pictures are four groups of 5 and one of 4, each with one short batch.
    assert sum(len(batch) < 5 for batch in batches[1]) <= 5
    assert any(len({image_id for image_id, _ in batch}) > 1 for batch in batches[1])


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    from detector.model import RetinaNet

    torch.manual_seed(0)
    # Noise makes the scores of an untrained network differ, so that hundreds of boxes pass the
    # threshold.
    model = RetinaNet(classes=2, backbone="resnet18", width=64, base_sizes=(8, 16, 32, 64, 128)).to(
        memory_format=torch.channels_last
    )
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return Predictor(
        model,
        canvases=[(64, 96), (96, 64)],
        decode=DecodeSettings(
            score_threshold=0.0, top_per_level=1000, nms_threshold=0.5, max_detections=20
        ),
        amp=False,
    )


@pytest.mark.parametrize(
    "settings",
    [WHOLE_PICTURE, ViewSettings(tile=200), ViewSettings(flip=True)],
    ids=["whole", "tile", "flip"],
)
def test_detections_do_not_depend_on_ranks_and_threads(
    shard_set: ShardSet, predictor: Predictor, settings: ViewSettings
) -> None:
    """To the last bit, in float32, on two canvases: what evaluation beside training, between epochs
    and by `evaluate` rests on.
    """
    from cluster.scoring.detect import detect_share

    alone = detect_share(predictor, shard_set, settings=settings)
    assert len(alone) == 24 and sum(len(found.scores_N) for found in alone.values()) == 24 * 20
    for ranks, threads in ((1, 2), (2, 1), (3, 2)) if settings == WHOLE_PICTURE else ((2, 2),):
        parts = [
            detect_share(
                predictor, shard_set, rank=rank, ranks=ranks, threads=threads, settings=settings
            )
            for rank in range(ranks)
        ]
        assert sum(map(len, parts)) == 24
        check_same({k: v for part in parts for k, v in part.items()}, alone)


def test_tiles_that_no_picture_exceeds_change_nothing(
    shard_set: ShardSet, predictor: Predictor
) -> None:
    from cluster.scoring.detect import detect_share

    tiled = detect_share(predictor, shard_set, settings=ViewSettings(tile=320))
    check_same(tiled, detect_share(predictor, shard_set))


def test_prediction_finds_in_tiles_what_evaluation_finds(
    shard_set: ShardSet, predictor: Predictor
) -> None:
    """The same AP: from the rows in stored order, in batches of the same size, to the last bit."""
    from cluster.scoring.detect import detect_share
    from cluster.shards.read import read_columns

    settings = ViewSettings(tile=200, flip=True)
    rows = read_columns(shard_set, ["image_id", "image"]).to_pylist()
    samples = (
        predictor.view_samples(open_image(row["image"]), row["image_id"], settings) for row in rows
    )
    # In a thread that computes alone: a convolution on two threads rounds differently.
    (found,) = ordered_map(
        lambda samples: predictor.detect_views(samples, settings), iter([samples]), threads=1
    )
    check_same(found, detect_share(predictor, shard_set, settings=settings))


def check_same(found: dict[int, Detections], expected: dict[int, Detections]) -> None:
    assert found.keys() == expected.keys()
    for image_id, each in found.items():
        for mine, other in zip(vars(each).values(), vars(expected[image_id]).values(), strict=True):
            np.testing.assert_array_equal(mine, other)
