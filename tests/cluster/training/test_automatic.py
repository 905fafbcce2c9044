"""What `auto` means for a training, from the nodes of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig, TrainOptions
from cluster.runs.training_config import TrainingOptions
from cluster.shards.format import Row, shard_name
from cluster.shards.index import Counts, Index, write_index
from cluster.shards.write import write_shard
from cluster.training.automatic import choose, fit_to_pictures

LAPTOP = [{"CPU": 2.0}]
ONE_GPU = [{"CPU": 16.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("given", "nodes", "workers", "gpus", "threads"),
    [
        # Without GPUs: two processes, or one for each node, or what there is room for.
        ({}, LAPTOP, 2, 0, 1),
        ({}, [{"CPU": 64.0}], 2, 0, 1),
        ({}, [{"CPU": 1.0}], 1, 0, 1),
        ({}, [{"CPU": 8.0}] * 4, 4, 0, 1),
        # With GPUs: one for each, and 16 - 1 threads are more than 8.
        ({}, ONE_GPU, 1, 1, 8),
        ({}, [{"CPU": 32.0, "GPU": 8.0}], 8, 1, 3),
        ({}, [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 16.0}], 4, 1, 1),
        # 16 images are no multiple of 3; 16 workers would have one image each.
        ({}, [{"CPU": 64.0, "GPU": 3.0}], 2, 1, 8),
        ({}, [{"CPU": 64.0, "GPU": 16.0}], 8, 1, 3),
        ({"batch_size": 18}, [{"CPU": 64.0, "GPU": 3.0}], 3, 1, 8),
        ({"batch_size": 1}, [{"CPU": 64.0, "GPU": 3.0}], 1, 1, 8),
        # Each part of a batch has as many images as the others: 16 / 4 workers / 4 parts.
        ({"accumulate": 4}, [{"CPU": 64.0, "GPU": 8.0}], 4, 1, 7),
        # 8 x (6 + 0.25) CPUs have no room on 48.
        ({"cpus_per_worker": 6}, [{"CPU": 48.0, "GPU": 8.0}], 4, 1, 5),
        # The evaluation beside the training takes a GPU too, unless it is told not to.
        ({"evaluation": "beside"}, [{"CPU": 32.0, "GPU": 4.0}], 2, 1, 7),
        ({"evaluation": "beside", "evaluation_gpus": 0}, [{"CPU": 32.0, "GPU": 4.0}], 4, 1, 7),
        ({"min_workers": 3}, [{"CPU": 64.0, "GPU": 3.0}], 4, 1, 8),
        # A given value is taken.
        ({"workers": 4}, [{"CPU": 16.0, "GPU": 2.0}], 4, 0, 1),
        ({"workers": 2}, [{"CPU": 16.0, "GPU": 4.0}], 2, 1, 3),
        ({"gpus_per_worker": 0}, ONE_GPU, 2, 0, 1),
        ({"gpus_per_worker": 1, "workers": 8}, LAPTOP, 8, 1, 1),
        ({"decode_threads": 12}, ONE_GPU, 1, 1, 12),
    ],
)
def test_a_training_uses_what_the_cluster_has(
    given: dict[str, Any], nodes: list[dict[str, float]], workers: int, gpus: int, threads: int
) -> None:
    chosen = choose(TrainingOptions.model_validate(given), nodes)
    assert (chosen.workers, chosen.gpus_per_worker, chosen.decode_threads) == (
        workers,
        gpus,
        threads,
    )


@pytest.mark.parametrize(
    ("given", "nodes", "reasons"),
    [
        (
            {},
            ONE_GPU,
            (
                "training.workers 1: one for each GPU",
                "training.gpus_per_worker 1: the cluster has GPUs, 1 in all",
                "training.decode_threads 8: a node has 16 CPUs for each GPU",
            ),
        ),
        (
            {"gpus_per_worker": 1, "decode_threads": 2},
            [{"CPU": 64.0, "GPU": 3.0}],
            ("training.workers 2: it splits training.batch_size 16 evenly and uses 2 of 3 GPUs",),
        ),
        (
            {"gpus_per_worker": 0, "decode_threads": 1},
            [{"CPU": 1.0}],
            ("training.workers 1: the cluster has no room for more",),
        ),
        (
            {"workers": 4, "decode_threads": 1},
            ONE_GPU,
            (
                "training.gpus_per_worker 0: 4 workers with a GPU each do not fit the cluster,"
                " GPUs 1",
            ),
        ),
        ({"workers": 1, "gpus_per_worker": 1, "decode_threads": 1}, ONE_GPU, ()),
    ],
)
def test_each_choice_is_said_with_its_reason_and_its_option(
    given: dict[str, Any], nodes: list[dict[str, float]], reasons: tuple[str, ...]
) -> None:
    said = choose(TrainingOptions.model_validate(given), nodes).reasons
    names = [reason.split(" ")[0] for reason in reasons]
    assert said == tuple(
        f"{reason} (auto; --{name} changes it)" for reason, name in zip(reasons, names, strict=True)
    )


def options(**given: Any) -> TrainOptions:
    return TrainOptions.model_validate({"data": {"train": "/t", "val": "/v"}, **given})


def test_a_settled_training_keeps_what_was_given() -> None:
    asked = options(training={"workers": 4, "batch_size": 8})
    settled = asked.settled(workers=1, gpus_per_worker=1, decode_threads=5)
    assert type(settled) is TrainConfig
    training = settled.training
    assert (training.workers, training.gpus_per_worker, training.decode_threads) == (4, 1, 5)
    # Settled again it stays as it is.
    assert settled.settled(workers=2, gpus_per_worker=0, decode_threads=1) == settled


def test_values_that_do_not_fit_the_others_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="^model.norm sync: needs training.gpus_per_worker 1"):
        options(model={"norm": "sync"}).settled(workers=2, gpus_per_worker=0, decode_threads=1)


def shards(folder: Path, sizes: list[tuple[int, int]]) -> str:
    """A set with a picture of each (height, width); nobody decodes them here."""
    rows = [
        Row(number, f"{number}.jpg", b"", *size, np.zeros((0, 4)), [], [], [], 0, bytes(32))
        for number, size in enumerate(sizes)
    ]
    shard = write_shard(str(folder), shard_name(0, 1), rows, row_group_rows=8)
    write_index(str(folder), Index((), (shard,), Counts(images=len(sizes))))
    return str(folder)


def test_a_training_without_a_canvas_takes_that_of_its_pictures(tmp_path: Path) -> None:
    train = shards(tmp_path, [(480, 640)] * 3 + [(640, 480)])
    asked = options(data={"train": train, "val": "/v"}, training={"workers": 3, "batch_size": 6})
    fitted, said = fit_to_pictures(asked)
    assert fitted.canvas.canvases == ((800, 1088), (1088, 800))
    assert len(said) == 1 and said[0].startswith("canvas 800x1088 and 1088x800: fits the pictures")
    # Nothing else changes, and once fitted it stays.
    assert fitted.model_copy(update={"canvas": asked.canvas}) == asked
    assert fit_to_pictures(fitted) == (fitted, ())


def test_a_given_canvas_is_taken() -> None:
    # Nothing is read: there is no set.
    asked = options(canvas={"width": 640})
    assert fit_to_pictures(asked) == (asked, ())
    assert asked.canvas.canvases == ((800, 640),)


def test_a_fitted_canvas_that_holds_no_such_picture_is_refused(tmp_path: Path) -> None:
    train = shards(tmp_path, [(120, 160)])
    asked = options(data={"train": train, "val": "/v"}, augmentation={"short_sides": [640, 800]})
    with pytest.raises(UsageError, match="^augmentation.short_sides 640,800: the canvas holds"):
        fit_to_pictures(asked)
