"""Readers of annotation formats (COCO, VOC, YOLO, CSV, Parquet, those of labelling tools) into one
form. Pure: no Ray, torch or MLflow. Imports shards and storage.
"""

from __future__ import annotations
