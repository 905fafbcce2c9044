from __future__ import annotations

import numpy as np
import torch

from cluster.loading.evaluation_batches import evaluation_batches
from cluster.shards.index import ShardSet
from detector.predict import Predictor

CANVAS = (64, 96)


def test_evaluation_takes_every_row_once_with_its_own_size(shard_set: ShardSet) -> None:
    from cluster.scoring.truths import read_truths

    sizes = {t.image_id: (t.height, t.width) for t in read_truths(shard_set)}
    found: dict[int, tuple[int, int]] = {}
    for rank in range(3):
        for batch, originals in evaluation_batches(
            shard_set, rank=rank, ranks=3, batch=5, canvases=[CANVAS]
        ):
            for image_id, original in zip(batch.image_ids.tolist(), originals, strict=True):
                assert image_id not in found
                found[image_id] = original
    assert found == sizes


def test_detections_do_not_depend_on_ranks_and_threads(shard_set: ShardSet) -> None:
    """To the last bit, in float32, on two canvases: what evaluation beside training, between epochs
    and by `evaluate` rests on.
    """
    from cluster.scoring.detect import detect_share
    from detector.model import RetinaNet

    torch.manual_seed(0)
    # Noise makes the scores of an untrained network differ, so that hundreds of boxes pass the
    # threshold.
    model = RetinaNet(classes=2, backbone="resnet18", width=64, base_sizes=(8, 16, 32, 64, 128)).to(
        memory_format=torch.channels_last
    )
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    predictor = Predictor(
        model,
        canvases=[(64, 96), (96, 64)],
        decode={"score_threshold": 0.0, "max_detections": 20},
        amp=False,
    )
    alone = detect_share(predictor, shard_set)
    assert len(alone) == 24 and sum(len(found.scores_N) for found in alone.values()) == 24 * 20
    for ranks, threads in ((1, 2), (2, 1), (3, 2)):
        parts = [
            detect_share(predictor, shard_set, rank=rank, ranks=ranks, threads=threads)
            for rank in range(ranks)
        ]
        assert sum(map(len, parts)) == 24
        for image_id, found in {k: v for part in parts for k, v in part.items()}.items():
            for mine, other in zip(
                vars(found).values(), vars(alone[image_id]).values(), strict=True
            ):
                np.testing.assert_array_equal(mine, other)
