"""What people read about shard sets: lines for a terminal, report.html, sample pictures. Imports
shards and storage.
"""

from __future__ import annotations
