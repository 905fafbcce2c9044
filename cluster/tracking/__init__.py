"""MLflow: the runs, the model registry and the packaged model. Knows no Ray. Imports runs and
storage.
"""

from __future__ import annotations
