from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import DataError
from cluster.loading import epoch_plan
from cluster.loading.evaluation_batches import evaluation_batches
from cluster.loading.prefetch import Ahead
from cluster.loading.stream import Stream
from cluster.shards.format import Row, shard_name
from cluster.shards.index import Index, ShardSet, open_shard_set, write_index
from cluster.shards.read import read_rows
from cluster.shards.write import write_shard
from detector.image import open_image
from detector.predict import Predictor

CANVAS = (64, 96)
AUGMENTATION = {"flip": 0.5, "scale_min": 0.8, "scale_max": 1.25}


def stream(shard_set: ShardSet, rank: int, ranks: int, *, batch: int = 4) -> Stream:
    return Stream(
        shard_set,
        rank=rank,
        batches=[batch] * ranks,
        canvases=[CANVAS],
        seed=7,
        augmentation=AUGMENTATION,
        window=2,
    )


def ids(batches: Iterator) -> list[list[int]]:
    return [batch.image_ids.tolist() for batch in batches]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_image_once_an_epoch_and_equal_steps(shard_set: ShardSet, ranks: int) -> None:
    read = [ids(stream(shard_set, rank, ranks).epoch(0, [(0, 24)])) for rank in range(ranks)]
    # ceil(24 / ranks) rows a rank in batches of 4: 24/4 = 6, 12/4 = 3, 8/4 = 2 steps.
    assert [len(batches) for batches in read] == [{1: 6, 2: 3, 3: 2}[ranks]] * ranks
    seen = Counter(i for batches in read for batch in batches for i in batch)
    assert set(seen.values()) == {1}
    assert len(seen) == 24


def test_images_for_a_gpu_are_drawn_in_pinned_memory(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for torch's pinned memory, which needs a GPU."""
    plain = list(stream(shard_set, 0, 1).epoch(0, [(0, 22)]))
    empty, pinned, copied = torch.empty, dict[int, torch.Tensor](), list[torch.Size]()

    def pin_memory(column: torch.Tensor) -> torch.Tensor:
        if column.data_ptr() not in pinned:
            copied.append(column.shape)
        return column

    def allocate(*shape: Any, pin_memory: bool = False, **given: Any) -> torch.Tensor:
        made = empty(*shape, **given)
        if pin_memory:
            pinned[made.data_ptr()] = made
        return made

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    drawn = list(replace(stream(shard_set, 0, 1), pinned=True).epoch(0, [(0, 22)]))
    # 22 images are 5 batches of 4 and one of 2 with 2 fillers.
    assert ids(drawn) == ids(plain) and len(drawn) == 6
    for one, other in zip(drawn, plain, strict=True):
        assert one.images.data_ptr() in pinned
        assert torch.equal(one.images[one.image_ids >= 0], other.images[other.image_ids >= 0])
        assert torch.equal(one.boxes_BG4, other.boxes_BG4)
    assert not any(len(shape) == 4 for shape in copied), "images are not copied"


def test_what_is_left_is_recut_for_another_number_of_ranks(shard_set: ShardSet) -> None:
    """Two ranks make two of their steps; then one rank does the rest."""
    before = [
        i
        for rank in range(2)
        for batch in ids(stream(shard_set, rank, 2).epoch(3, [(0, 24)]))[:2]
        for i in batch
    ]
    left = epoch_plan.advance([(0, 24)], batches=[4, 4], done=2)
    after = [i for batch in ids(stream(shard_set, 0, 1).epoch(3, left)) for i in batch]
    assert len(before) == 16
    assert len(after) == 8
    assert len(set(before + after)) == 24


def test_a_shorter_share_ends_with_fillers_that_are_ignore_regions(shard_set: ShardSet) -> None:
    # 5 rows over 2 ranks in whole batches: 4 and 1, both one step of 4.
    batches = [
        batch for rank in range(2) for batch in stream(shard_set, rank, 2).epoch(0, [(0, 5)])
    ]
    assert [(batch.image_ids >= 0).sum().item() for batch in batches] == [4, 1]
    filler = batches[1].image_ids < 0
    assert (batches[1].labels_BG[filler] == -1).all()
    assert (batches[1].boxes_BG4[filler, 0, :2] <= 0).all()
    assert (batches[1].boxes_BG4[filler, 0, 2:] >= torch.tensor([96.0, 64.0])).all()


def test_a_rank_without_rows_gets_fillers_only(shard_set: ShardSet) -> None:
    (batch,) = stream(shard_set, 1, 2).epoch(0, [(0, 1)])
    assert batch.image_ids.tolist() == [-1] * 4


def test_nothing_left_is_no_batch(shard_set: ShardSet) -> None:
    assert list(stream(shard_set, 0, 1).epoch(0, [])) == []


def test_pixels_depend_on_seed_epoch_and_image_alone(shard_set: ShardSet) -> None:
    """The same image read by another rank, in another batch, after a resume, looks the same; in
    another epoch it does not.
    """

    def pixels(rank: int, ranks: int, epoch: int) -> dict[int, torch.Tensor]:
        batches = stream(shard_set, rank, ranks, batch=3).epoch(epoch, [(0, 24)])
        return {
            int(i): image
            for batch in batches
            for i, image in zip(batch.image_ids, batch.images, strict=True)
            if i >= 0
        }

    whole, shared, later = pixels(0, 1, 0), pixels(1, 2, 0), pixels(0, 1, 1)
    assert len(shared) == 12
    assert all(torch.equal(image, whole[i]) for i, image in shared.items())
    assert sum(torch.equal(later[i], whole[i]) for i in whole) < 12


def test_tasks_of_ray_data_make_the_pixels_that_threads_make(shard_set: ShardSet) -> None:
    """Two canvases and mosaic, so that everything a sample depends on has to travel."""
    settings = dict(
        rank=0,
        batches=[3, 3],
        canvases=[(64, 96), (96, 64)],
        seed=7,
        augmentation={**AUGMENTATION, "mosaic": 0.5},
        window=2,
    )
    beside, elsewhere = (
        list(Stream(shard_set, decode=place, **settings).epoch(1, [(0, 24)]))
        for place in ("threads", "tasks")
    )
    assert len(beside) == len(elsewhere) == 4
    for one, other in zip(beside, elsewhere, strict=True):
        for name in one.__dataclass_fields__:
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_rare_classes_occur_more_often_and_every_epoch_has_the_same_number_of_images(
    shard_set: ShardSet,
) -> None:
    from cluster.scoring.truths import read_truths

    truths = read_truths(shard_set)
    labels = [t.labels_N[~t.crowd_N].tolist() for t in truths]
    factors = epoch_plan.repeat_factors(labels, classes=len(shard_set.categories), threshold=0.9)
    assert factors.max() > 1
    weighted = [
        Stream(
            shard_set,
            rank=rank,
            batches=[4, 4],
            canvases=[CANVAS],
            seed=7,
            window=2,
            repeat_threshold=0.9,
        )
        for rank in range(2)
    ]
    assert weighted[0].places == round(factors.sum())
    for epoch in range(2):
        batches = [batch for rank in weighted for batch in rank.epoch(epoch, [(0, rank.places)])]
        seen = Counter(i for batch in batches for i in batch.image_ids.tolist() if i >= 0)
        assert seen.total() == weighted[0].places
        expected = factors / factors.sum() * seen.total()
        assert all(
            abs(seen[t.image_id] - count) < 1 for t, count in zip(truths, expected, strict=True)
        )


def test_copies_of_an_image_look_different(shard_set: ShardSet) -> None:
    # No class is in 99 % of the images, so all that hold one are repeated, the rarest class most.
    weighted = Stream(
        shard_set,
        rank=0,
        batches=[4],
        canvases=[CANVAS],
        seed=7,
        augmentation=AUGMENTATION,
        window=2,
        repeat_threshold=0.99,
    )
    plain = {
        int(i): image
        for batch in stream(shard_set, 0, 1).epoch(0, [(0, 24)])
        for i, image in zip(batch.image_ids, batch.images, strict=True)
    }
    copies: dict[int, list[torch.Tensor]] = {}
    for batch in weighted.epoch(0, [(0, weighted.places)]):
        for i, image in zip(batch.image_ids.tolist(), batch.images, strict=True):
            if i >= 0:
                copies.setdefault(i, []).append(image)
    repeated = [i for i, images in copies.items() if len(images) > 1]
    assert repeated
    for i in repeated:
        assert len({image.contiguous().numpy().tobytes() for image in copies[i]}) > 1
        # One of them is the one that an epoch without copies has.
        assert any(torch.equal(image, plain[i]) for image in copies[i])


def test_the_next_epoch_is_begun_before_this_one_ends_and_is_the_same(shard_set: ShardSet) -> None:
    eager, late = (replace(stream(shard_set, 0, 1), epochs=epochs) for epochs in (3, 1))
    expected = [ids(late.epoch(epoch, [(0, 24)])) for epoch in range(3)]
    assert not late._prepared
    found = []
    for epoch in range(3):
        batches = eager.epoch(epoch, [(0, 24)])
        found.append([next(batches).image_ids.tolist() for _ in range(5)])
        # One batch before the end the next epoch is under way; after the last epoch there is none.
        assert list(eager._prepared) == ([epoch + 1] if epoch < 2 else [])
        found[-1] += ids(batches)
    assert found == expected
    list(eager.epoch(0, [(0, 24)]))
    eager.close()
    assert not eager._prepared


def test_an_epoch_that_is_prepared_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def begin(own: Stream, epoch: int, left: epoch_plan.Intervals) -> Ahead:
        begun.append(epoch)
        return Ahead((number for number in range(2)), depth=2)

    monkeypatch.setattr(Stream, "_begin", begin)
    again = Stream(
        SimpleNamespace(num_rows=8), rank=0, batches=[4], canvases=[CANVAS], seed=0, epochs=2
    )
    for _ in range(2):
        assert len(list(again.epoch(0, [(0, 8)]))) == 2
    again.close()
    assert begun == [0, 1, 0]


@pytest.mark.parametrize(("batch_s", "left"), [(0.25, 4), (0.3, 3), (0.5, 2), (60.0, 2), (0.0, 8)])
def test_the_next_epoch_is_begun_a_second_before_this_one_ends(
    monkeypatch: pytest.MonkeyPatch, batch_s: float, left: int
) -> None:
    """Of ten batches so many are left then, by a clock that only the consumer moves; the very first
    says nothing about the pace.
    """
    clock, begun = [0.0], []

    def begin(own: Stream, epoch: int, intervals: epoch_plan.Intervals) -> Ahead:
        begun.append((epoch, taken))
        return Ahead((number for number in range(10)), depth=2)

    monkeypatch.setattr(Stream, "_begin", begin)
    monkeypatch.setattr("cluster.loading.stream.time", SimpleNamespace(monotonic=lambda: clock[0]))
    own, taken = (
        Stream(
            SimpleNamespace(num_rows=40), rank=0, batches=[4], canvases=[CANVAS], seed=0, epochs=2
        ),
        0,
    )
    for _ in own.epoch(0, [(0, 40)]):
        taken += 1
        clock[0] += batch_s
    own.close()
    assert begun == [(0, 0), (1, 10 - left - 1)]


def test_a_resumed_position_is_not_taken_from_a_prepared_epoch(shard_set: ShardSet) -> None:
    eager = replace(stream(shard_set, 0, 1), epochs=2)
    list(eager.epoch(0, [(0, 24)]))
    assert ids(eager.epoch(1, [(8, 24)])) == ids(stream(shard_set, 0, 1).epoch(1, [(8, 24)]))
    eager.close()


def test_a_damaged_shard_ends_the_epoch_and_names_it(shard_set: ShardSet, tmp_path: Path) -> None:
    copy = shutil.copytree(shard_set.uri, tmp_path / "set")
    damaged = open_shard_set(str(copy))
    shard = copy / damaged.shards[0].name
    data = bytearray(shard.read_bytes())
    data[damaged.locate_group(2).start + 100] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DataError, match=rf"{shard.name}: is not the shard of the index"):
        list(stream(damaged, 0, 1).epoch(0, [(0, 24)]))


@pytest.mark.parametrize("decode", ["threads", "tasks"])
def test_a_picture_that_cannot_be_decoded_is_named(
    shard_set: ShardSet, tmp_path: Path, decode: str
) -> None:
    """Prepare leaves such pictures out; a set that was written by something else may hold one."""
    rows = [
        Row(
            i,
            f"sub/{i}.jpg",
            b"\xff\xd8 no picture",
            60,
            80,
            np.zeros((0, 4)),
            [],
            [],
            [],
            0,
            bytes(32),
        )
        for i in (8, 9)
    ]
    written = [write_shard(str(tmp_path), shard_name(0, 1), rows, row_group_rows=2)]
    unreadable = write_index(str(tmp_path), Index(shard_set.categories, tuple(written)))
    refusal = (
        r"^sub/[89]\.jpg \(image_id [89]\): it cannot be decoded: .*; prepare the data set again"
    )
    with pytest.raises(DataError, match=refusal):
        list(
            Stream(unreadable, rank=0, batches=[2], canvases=[CANVAS], seed=0, decode=decode).epoch(
                0, [(0, 2)]
            )
        )
    if decode == "threads":
        with pytest.raises(DataError, match=refusal):
            list(evaluation_batches(unreadable, rank=0, ranks=1, batch=2, canvases=[CANVAS]))


def test_training_evaluation_and_prediction_see_the_same_pixels(shard_set: ShardSet) -> None:
    """On a canvas of which the pictures are two to four times as large, so that they are decoded
    smaller.
    """
    canvases = [(96, 96)]
    plain = Stream(shard_set, rank=0, batches=[4], canvases=canvases, seed=0)
    training = {
        int(i): image
        for batch in plain.epoch(0, [(0, 24)])
        for i, image in zip(batch.image_ids, batch.images, strict=True)
    }
    batches = evaluation_batches(shard_set, rank=0, ranks=1, batch=5, canvases=canvases)
    evaluation = {
        int(i): image
        for batch, _ in batches
        for i, image in zip(batch.image_ids, batch.images, strict=True)
    }
    predictor = Predictor(None, canvases=canvases, decode={}, amp=False)
    smaller = 0
    for row in read_rows([shard_set.locate_group(0)], [(0, i) for i in range(5)]).to_pylist():
        image_id, opened = row["image_id"], open_image(row["image"])
        sample, size = predictor.sample(opened, image_id)
        assert size == (row["height"], row["width"])
        assert torch.equal(sample.image, training[image_id]) and torch.equal(
            sample.image, evaluation[image_id]
        )
        smaller += not torch.equal(
            sample.image, predictor.sample(opened.pixels(), image_id)[0].image
        )
    assert len(training) == len(evaluation) == 24 and smaller > 0


def test_order_differs_between_epochs(shard_set: ShardSet) -> None:
    first, again, second = (
        ids(stream(shard_set, 0, 1).epoch(epoch, [(0, 24)])) for epoch in (0, 0, 1)
    )
    assert first == again
    assert first != second


def test_crowds_arrive_as_ignore_regions(shard_set: ShardSet) -> None:
    from cluster.scoring.truths import read_truths

    crowds = {t.image_id for t in read_truths(shard_set) if t.crowd_N.any()}
    assert crowds
    plain = Stream(shard_set, rank=0, batches=[4], canvases=[CANVAS], seed=0)
    for batch in plain.epoch(0, [(0, 24)]):
        for image_id, boxes, labels in zip(
            batch.image_ids.tolist(), batch.boxes_BG4, batch.labels_BG, strict=True
        ):
            region = (labels == -1) & (boxes[:, 2] > boxes[:, 0])
            assert bool(region.any()) == (image_id in crowds)


def test_batches_have_one_canvas_each_and_images_the_one_they_prefer(shard_set: ShardSet) -> None:
    from cluster.scoring.truths import read_truths

    canvases = [(64, 96), (96, 64)]
    upright = {t.image_id for t in read_truths(shard_set) if t.height > t.width}
    seen: Counter[int] = Counter()
    mixed = 0
    for rank in range(2):
        several = Stream(
            shard_set,
            rank=rank,
            batches=[2, 2],
            canvases=canvases,
            seed=7,
            augmentation=AUGMENTATION,
            window=2,
        )
        batches = list(several.epoch(0, [(0, 24)]))
        assert len(batches) == 6
        for batch in batches:
            real = [i for i in batch.image_ids.tolist() if i >= 0]
            seen.update(real)
            prefer = {canvases[i in upright] for i in real}
            assert tuple(batch.images.shape[2:]) in prefer
            mixed += len(prefer) > 1
    assert set(seen.values()) == {1} and len(seen) == 24
    # Runs of 4 fill but for the last at most 3 of each canvas, which lie side by side: one border.
    assert mixed <= 1
    found = [
        i
        for batch, _ in evaluation_batches(shard_set, rank=0, ranks=1, batch=5, canvases=canvases)
        for i in batch.image_ids.tolist()
    ]
    assert sorted(found) == sorted(seen)
    for batch, views in evaluation_batches(shard_set, rank=0, ranks=1, batch=5, canvases=canvases):
        assert {tuple(batch.images.shape[2:])} == {
            canvases[view.picture[0] > view.picture[1]] for view in views
        }


def test_a_rank_killed_mid_epoch_costs_no_image_and_changes_no_pixel(shard_set: ShardSet) -> None:
    """Three ranks in processes of their own make one step; one is killed in the middle of its
    second; one rank does the rest.
    """
    import ray

    class Rank:
        def __init__(self, own: Stream):
            self.batches = own.epoch(2, [(0, 24)])

        def pid(self) -> int:
            return os.getpid()

        def step(self) -> dict[int, bytes]:
            batch = next(self.batches)
            return {
                int(i): image.contiguous().numpy().tobytes()
                for i, image in zip(batch.image_ids, batch.images, strict=True)
                if i >= 0
            }

    actors = [ray.remote(num_cpus=0)(Rank).remote(stream(shard_set, rank, 3)) for rank in range(3)]
    seen = Counter()
    pixels: dict[int, bytes] = {}
    for found in ray.get([actor.step.remote() for actor in actors]):
        seen.update(found.keys())
        pixels |= found
    os.kill(ray.get(actors[1].pid.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actors[1].step.remote())
    for actor in actors:
        ray.kill(actor)
    # What the others read ahead or even used of the second step does not count: no update was made
    # of it.
    left = epoch_plan.advance([(0, 24)], batches=[4, 4, 4], done=1)
    for batch in stream(shard_set, 0, 1).epoch(2, left):
        seen.update(i for i in batch.image_ids.tolist() if i >= 0)
        pixels |= {
            int(i): image.contiguous().numpy().tobytes()
            for i, image in zip(batch.image_ids, batch.images, strict=True)
            if i >= 0
        }
    assert set(seen.values()) == {1} and len(seen) == 24
    whole = [batch for batch in stream(shard_set, 0, 1).epoch(2, [(0, 24)])]
    assert pixels == {
        int(i): image.contiguous().numpy().tobytes()
        for batch in whole
        for i, image in zip(batch.image_ids, batch.images, strict=True)
    }
