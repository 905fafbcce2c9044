"""A model package as files for onnxruntime: written, checked, quantised and measured on this
machine, without Ray. Imports loading, runs, scoring, shards and storage.
"""

from __future__ import annotations
