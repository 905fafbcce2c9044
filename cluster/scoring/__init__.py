"""A model over a shard set: detections and their evaluation. Imports compute, loading, runs, shards
and storage.
"""

from __future__ import annotations
