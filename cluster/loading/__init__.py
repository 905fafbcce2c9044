"""From a shard set to batches: who reads what (arithmetic), Ray Data, decoding. Imports compute and
shards.
"""

from __future__ import annotations
