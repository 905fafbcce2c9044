"""From a shard set to batches: the plan of who reads what (pure arithmetic), Ray Data, decoding.
Imports compute and shards.
"""

from __future__ import annotations
