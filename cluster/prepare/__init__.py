"""From annotations and pictures to a shard set: plan, ingest, write. Imports formats, reports,
shards and storage.
"""

from __future__ import annotations
