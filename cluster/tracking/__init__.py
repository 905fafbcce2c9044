"""MLflow: runs, the registry, the packaged model. Knows no Ray. Imports runs and storage."""

from __future__ import annotations
