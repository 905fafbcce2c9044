"""The shard set, the form in which the project keeps its data: format, index, writing, reading,
statistics. Imports storage.
"""

from __future__ import annotations
