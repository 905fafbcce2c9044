"""Rank 0's checkpoints of a made-up run, and an S3 server with faults behind which they go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cluster.runs import run_folder
from cluster.runs.evaluations import Request
from cluster.runs.events import CheckpointStored, Event, TrainingWarning
from cluster.storage import s3
from cluster.training.checkpoint_policy import CheckpointPolicy
from cluster.training.checkpoint_writer import local_folder
from cluster.training.checkpoints import Checkpoints, CheckpointStore
from detector.checkpoint import Snapshot

# One attempt: an upload that meets a fault has failed.
HASTY = s3.Patience(attempts=1, connect_seconds=20, stall_seconds=20, again_seconds=0)


class CheckpointRun:
    """The run `cells` below `store`, and what its checkpoints told. Another one on the same `disk`
    is the worker started again.
    """

    def __init__(self, store: str, disk: Path, *, run_uuid: str = "first", keep: int = 2) -> None:
        self.told: list[Event] = []
        self.requested: list[Request] = []
        self.protected: Callable[[], set[str]] = set
        self.uri = f"{store}/runs/cells"
        self.store = CheckpointStore(
            self.uri,
            local_folder(self.uri, run_uuid, str(disk)),
            keep=keep,
            tell=self.told.append,
            protected=lambda: self.protected(),
            request_evaluation=self.requested.append,
        )
        policy = CheckpointPolicy(
            every_images=0,
            every_minutes=0,
            writes=True,
            tell=self.told.append,
            find_notice=lambda: None,
        )
        self.checkpoints = Checkpoints(self.uri, policy, self.store)

    def save(self, images_seen: int, *, to_be_evaluated: bool = False, values: int = 3) -> str:
        def take(memory: Snapshot | None) -> Snapshot:
            state: dict[str, Any] = {"images_seen": images_seen, "epoch": images_seen // 100}
            return Snapshot(
                {"x": torch.full((values,), float(images_seen))},
                None,
                {"step": torch.tensor(1.0)},
                None,
                {**state, "scored": to_be_evaluated},
            )

        return self.checkpoints.save(images_seen, take, to_be_evaluated=to_be_evaluated)

    def settle(self) -> None:
        """Until the threads have nothing to do."""
        self.checkpoints.settle()

    @property
    def waiting(self) -> list[int]:
        """Images seen of the checkpoints on the local disk."""
        return [int(name[-12:]) for name in self.store.local.names()]

    @property
    def stored(self) -> list[int]:
        """Images seen of the checkpoints in storage."""
        return [int(uri[-12:]) for uri in run_folder.checkpoints(self.uri)]

    @property
    def uploaded(self) -> list[int]:
        """Images seen of the checkpoints that were told as stored, in order."""
        return [event.images_seen for event in self.told if isinstance(event, CheckpointStored)]

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self.told if isinstance(event, TrainingWarning)]

    def newest(self, folder: Path) -> int | None:
        """Images seen of the checkpoint that a worker continues from, read from its weights."""
        uri = self.checkpoints.newest(str(folder / "back"))
        if uri is None:
            return None
        (value,) = set(load_file(folder / "back" / "model.safetensors")["x"].tolist())
        assert uri == run_folder.checkpoint_uri(self.uri, int(value))
        return int(value)
