"""A model over images: detections, evaluation of a shard set, prediction over files. Imports
compute, loading, runs, shards and storage.
"""

from __future__ import annotations
