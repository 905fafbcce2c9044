"""Annotations of other tools (COCO, VOC, YOLO) read into one form. Pure: no Ray, torch or MLflow.
Imports shards and storage.
"""

from __future__ import annotations
