"""Distributed training on Ray Train: launch, worker loop, checkpoints, supervision. Knows no
MLflow.

Imports compute, loading, runs, scoring, shards and storage.
"""

from __future__ import annotations
