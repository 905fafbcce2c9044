"""Verdicts on models from what an evaluation found. Imports nothing else of cluster/."""

from __future__ import annotations
