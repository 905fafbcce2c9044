"""What a worker starts from: the run's newest checkpoint; if there is none yet, a weight file,
another run's checkpoint, or its seed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.errors import UsageError
from cluster.runs import weight_file
from cluster.runs.events import Resumed, StepsDone, Tell, WeightsLoaded, stored_steps
from cluster.storage.scratch import scratch_folder
from cluster.training.checkpoint_download import download
from cluster.training.checkpoints import Checkpoints
from cluster.training.ranks import Ranks
from cluster.training.state import TrainingState
from detector.model import RetinaNet
from detector.weights import load_pretrained


@dataclass(frozen=True)
class Origin:
    """Where a worker group continues from."""

    checkpoint: str | None = None
    """URI of the run's own checkpoint; None where the run begins."""
    steps: Sequence[StepsDone] = field(default_factory=tuple)
    """Metrics that the checkpoint keeps for MLflow."""


@dataclass(frozen=True)
class NewRun:
    """What a run without a checkpoint starts from; the seed where both URIs are None."""

    weight_file: str | None = None
    parent_checkpoint: str | None = None
    """URI of another run's checkpoint."""
    parent_state: Literal["weights", "full"] = "weights"
    """What to take from it."""


def resume(
    state: TrainingState,
    start: NewRun,
    *,
    checkpoints: Checkpoints,
    ranks: Ranks,
    data_digest: str,
    tell: Tell,
) -> Origin:
    """Load the newest whole checkpoint of the run, else what a new run starts from. Rank 0 chooses,
    so that all ranks take the same one.
    """
    with scratch_folder("resume") as parent:
        folder = os.path.join(parent, "checkpoint")
        uri = ranks.agreed(checkpoints.newest(folder) if ranks.rank == 0 else None)
        if uri is None:
            if start.weight_file is not None:
                load_weight_file(state, start.weight_file, ranks=ranks, tell=tell)
            if start.parent_checkpoint is not None:
                _load_parent(state, start, folder, data_digest=data_digest, tell=tell)
            return Origin()
        if ranks.rank:
            download(uri, folder)
        stored = _load(state, uri, folder, data_digest=data_digest, tell=tell)
    return Origin(uri, stored_steps(stored.get("told", ())))


def _load(
    state: TrainingState, uri: str, folder: str, *, data_digest: str, tell: Tell
) -> dict[str, Any]:
    stored = state.load(folder, uri, data_digest=data_digest)
    tell(Resumed(uri, state.progress.images_seen, state.progress.epoch))
    return stored


def load_weight_file(state: TrainingState, uri: str, *, ranks: Ranks, tell: Tell) -> None:
    """Start from a weight file. Rank 0 reads it and sends it to the others: one download, and the
    same weights on every rank.
    """
    if ranks.rank == 0:
        with weight_file.local_file(uri) as path:
            assert isinstance(state.model, RetinaNet), "refused for baselines"
            try:
                report = load_pretrained(state.model, path)
            except ValueError as error:
                raise UsageError(str(error).replace(path, uri)) from error
        tell(WeightsLoaded(uri, **asdict(report)))
    ranks.broadcast(state.model.state_dict().values())
    state.restart_average()


def _load_parent(
    state: TrainingState, start: NewRun, folder: str, *, data_digest: str, tell: Tell
) -> None:
    uri = start.parent_checkpoint
    assert uri is not None
    download(uri, folder)
    if start.parent_state == "full":
        _load(state, uri, folder, data_digest=data_digest, tell=tell)
        return
    name = state.load_weights(folder, uri)
    tell(
        WeightsLoaded(
            f"{uri}/{name}",
            source="checkpoint of another run",
            loaded=len(state.model.state_dict()),
        )
    )
