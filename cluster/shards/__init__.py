"""The shard set, the project's own form of a data set: format, index, write, read, verify,
statistics. Imports storage.
"""

from __future__ import annotations
