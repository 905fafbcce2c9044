"""Pages and texts about data that people look at. Imports shards and storage."""

from __future__ import annotations
