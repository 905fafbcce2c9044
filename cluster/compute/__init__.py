"""Connections to Ray, and what processes book on the cluster. Imports errors; no other room below
training starts Ray.
"""

from __future__ import annotations
