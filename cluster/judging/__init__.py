"""Verdicts on models from what an evaluation found. Imports nothing of cluster/ but errors."""

from __future__ import annotations
