"""The cluster: connect to Ray, and what work books on it. Imports errors; the only room below
training that starts Ray.
"""

from __future__ import annotations
