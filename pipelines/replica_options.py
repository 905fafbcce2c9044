"""The options of a verb that scores: the processes that hold a model, and what they book."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cluster.compute.resources import READ_CPUS

WORKERS: Any = Field(
    default=2, ge=1, le=4096, description="processes, each with a copy of the model"
)
CPUS_PER_WORKER: Any = Field(
    default=0.75,
    gt=0,
    le=256,
    description=f"CPUs that each process books; reading books {READ_CPUS} more for each",
)
GPUS_PER_WORKER: Any = Field(default=0, ge=0, le=1, description="GPUs that each process books")
