"""What a training run is on storage: configuration, folder, lease, evaluations, starting weights.
Knows no Ray and no MLflow.

Imports shards and storage.
"""

from __future__ import annotations
