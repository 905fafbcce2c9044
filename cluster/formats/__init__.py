"""Readers of annotation formats (COCO, LVIS, VOC, YOLO, CrowdHuman) into one form. Pure: no Ray,
torch or MLflow. Imports shards and storage.
"""

from __future__ import annotations
