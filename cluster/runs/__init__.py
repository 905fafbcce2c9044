"""A training run on storage: configuration, folder and records, lease, evaluations, model package,
starting weights. Knows no Ray and no MLflow. Imports shards and storage.
"""

from __future__ import annotations
