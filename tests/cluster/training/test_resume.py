"""A worker continues from its own checkpoint, or starts from another run's or a weight file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from cluster.errors import UsageError
from cluster.runs.events import Event, Resumed, StepsDone, WeightsLoaded
from cluster.runs.training_config import TrainingConfig
from cluster.training.checkpoints import Checkpoints, open_checkpoints
from cluster.training.ranks import Ranks
from cluster.training.resume import NewRun, Origin, load_weight_file, resume
from cluster.training.state import TrainingState
from detector.checkpoint import STATE_FILE, seal
from detector.model import RetinaNet
from detector.optimizer import MovingAverage, build_optimizer

KEYWORDS = {
    "classes": 2,
    "backbone": "resnet18",
    "width": 64,
    "head_norm": "group",
    "base_sizes": [8, 16, 32, 64, 128],
}
DIGEST = "d" * 64


def state_of(seed: int, *, classes: int = 2, average: bool = True, trained: bool = False) -> Any:
    torch.manual_seed(seed)
    model = RetinaNet(**{**KEYWORDS, "classes": classes}).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        model, name="adamw", learning_rate=1e-3, weight_decay=0.01, momentum=0.9
    )
    moving = MovingAverage(model, images=50) if average else None
    state = TrainingState(model, optimizer, moving, images_per_epoch=20)
    if trained:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
        state.advance([(4, 20)], torch.tensor(37.25))
    return state


class Run:
    """One rank of a run in `folder`, and what it tells."""

    def __init__(self, folder: Path, state: TrainingState):
        self.state, self.told = state, []
        self.checkpoints: Checkpoints = open_checkpoints(
            f"{folder}/run",
            run_uuid="",
            settings=TrainingConfig(checkpoint_folder=f"{folder}/local"),
            writes=True,
            find_notice=lambda: None,
            tell=self.told.append,
        )

    def save(self, **more: Any) -> str:
        entries = {"data_digest": DIGEST, **more}
        uri = self.checkpoints.save(
            self.state.progress.images_seen,
            lambda memory: self.state.snapshot(entries, memory=memory),
        )
        self.checkpoints.close()
        return uri

    def resume(self, start: NewRun | None = None) -> Origin:
        return resume(
            self.state,
            start or NewRun(),
            checkpoints=self.checkpoints,
            ranks=Ranks(0, 1, torch.device("cpu")),
            data_digest=DIGEST,
            tell=self.told.append,
        )

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]


def steps(images_seen: int) -> StepsDone:
    return StepsDone(images_seen, 0.5, 9.0, 0.1, 0.8, 0.1, 0.5, 0.25, 3.0, 1.0, 90.0, 0.01)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_worker_continues_with_its_position_and_its_average(tmp_path: Path) -> None:
    first = Run(tmp_path, state_of(0, trained=True))
    first.state.progress.skipped_updates = 3
    uri = first.save(told=[steps(2).to_json(), steps(4).to_json()])
    second = Run(tmp_path, state_of(1))
    origin = second.resume()
    assert origin == Origin(uri, [steps(2), steps(4)])
    assert second.of(Resumed) == [Resumed(uri, 4, 0)]
    progress = second.state.progress
    assert (progress.images_seen, progress.remaining, progress.skipped_updates) == (
        4,
        [(4, 20)],
        3,
    )
    assert second.state.loss_normalizer == 37.25 and second.state.average.seen == 4
    assert same(second.state.average.state, first.state.average.state)


def test_metrics_that_cannot_be_read_do_not_stop_the_run(tmp_path: Path) -> None:
    """Other versions of this code stored other metrics, or none."""
    old = {"images_seen": 4, "box": 0.5}
    Run(tmp_path, state_of(0, trained=True)).save(told=[old, {"box": 1.0}, "text"])
    (line,) = Run(tmp_path, state_of(1)).resume().steps
    assert (line.images_seen, line.box, line.to_json()) == (4, 0.5, {"version": 1, **old})
    Run(tmp_path / "none", state_of(0, trained=True)).save()
    assert Run(tmp_path / "none", state_of(1)).resume().steps == []


@pytest.mark.parametrize(
    ("average", "kind"), [(True, "weights"), (False, "weights"), (True, "full")]
)
def test_a_worker_starts_from_the_checkpoint_of_another_run(
    tmp_path: Path, average: bool, kind: Any
) -> None:
    first = Run(tmp_path / "first", state_of(0, average=average, trained=True))
    uri = first.save(told=[steps(4).to_json()])
    second = Run(tmp_path / "second", state_of(1))
    # Metrics of the other run are not this run's.
    assert second.resume(NewRun(parent_checkpoint=uri, parent_state=kind)) == Origin()
    theirs, ours = first.state, second.state
    expected = theirs.average.state if average and kind == "weights" else theirs.model.state_dict()
    assert same(ours.model.state_dict(), expected)
    assert same(ours.average.state, theirs.average.state if average else expected)
    progress = ours.progress
    if kind == "full":
        assert (progress.images_seen, progress.remaining) == (4, [(4, 20)])
        assert (ours.loss_normalizer, ours.average.seen) == (37.25, 4)
        assert len(ours.optimizer.state) == len(theirs.optimizer.state) > 0
        assert second.of(Resumed) == [Resumed(uri, 4, 0)]
    else:
        assert (progress.images_seen, progress.remaining) == (0, [(0, 20)])
        assert (ours.loss_normalizer, ours.average.seen) == (100.0, 0)
        assert not ours.optimizer.state
        (loaded,) = second.of(WeightsLoaded)
        assert loaded.uri == f"{uri}/{'ema' if average else 'model'}.safetensors"
    # From now on its own checkpoint comes first.
    ours.progress.images_seen = 8
    second.save()
    third = Run(tmp_path / "second", state_of(2))
    third.resume(NewRun(parent_checkpoint=f"{tmp_path}/gone", parent_state=kind))
    assert third.state.progress.images_seen == 8


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda state: state.pop("loss_normalizer"),
            "images-000000000004: 'loss_normalizer' is missing in it; another version",
        ),
        (
            lambda state: state.update(data_digest="e" * 64),
            "was trained on data eeeeeeeeeeee, data.train is dddddddddddd",
        ),
    ],
)
def test_a_checkpoint_that_a_run_cannot_continue_from_is_one_plain_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], complaint: str
) -> None:
    uri = Run(tmp_path, state_of(0, trained=True)).save()
    state = json.loads((Path(uri) / STATE_FILE).read_text())
    change(state)
    seal(uri, state)
    with pytest.raises(UsageError, match=complaint):
        Run(tmp_path, state_of(1)).resume()


def test_weights_of_another_network_are_one_plain_line(tmp_path: Path) -> None:
    uri = Run(tmp_path, state_of(0, trained=True)).save()
    with pytest.raises(
        UsageError, match=f"^{uri}/model.safetensors: the weights are of another network"
    ):
        Run(tmp_path, state_of(1, classes=3)).resume()


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_starts_from_the_weight_file_that_rank_0_has_read(
    tmp_path: Path, rank: int
) -> None:
    source = state_of(1).model
    path = str(tmp_path / "model.safetensors")
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, path)
    state, told = state_of(2), []
    # A group of one stands for the two ranks: what rank 0 sends is what it has, and the other keeps
    # its own.
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ranks = Ranks(rank, 2, torch.device("cpu"))
        load_weight_file(state, path, ranks=ranks, tell=told.append)
    finally:
        dist.destroy_process_group()
    expected = (source if rank == 0 else state_of(2).model).state_dict()
    assert same(state.model.state_dict(), expected) and same(state.average.state, expected)
    assert [type(event) for event in told] == ([WeightsLoaded] if rank == 0 else [])
