"""Stages that are reused by content: a stage runs once for the same inputs. Imports storage."""

from __future__ import annotations
