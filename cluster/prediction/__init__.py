"""A model over files of pictures: the list, its parts, the results, whatever is killed meanwhile.
Imports compute, loading, reports, runs, shards and storage.
"""

from __future__ import annotations
