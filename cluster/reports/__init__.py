"""What people read about shard sets and evaluations: lines for a terminal, pages, sample pictures.
Imports shards and storage.
"""

from __future__ import annotations
