"""What each node of a cluster has, and whether work can run on it: one line a check, with the
figure and the remedy. Imports compute, storage, errors.
"""

from __future__ import annotations
