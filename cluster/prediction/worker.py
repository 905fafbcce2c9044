"""The actor that does parts of a prediction: a network, loaded once."""

from __future__ import annotations

import threading

import torch

from cluster.prediction.part import PartJob, PartReport, predict_part
from cluster.runs.package_files import PackageFiles, load_predictor, stored_classes
from detector.predict import CLASSES_FILE

GPU_BATCH = 16
"""Images that the network takes at once on a GPU; on CPUs as many as in an evaluation."""


class Worker:
    """Does up to two parts at a time, whose images take turns at the network part by part."""

    def __init__(self, package: PackageFiles, threads: int, device: str):
        # On CPUs the threads run the network, beside a GPU they decode.
        self.threads = 1 if device == "cpu" else threads
        torch.set_num_threads(threads if device == "cpu" else 1)
        self.predictor = load_predictor(package, device)
        if device != "cpu":
            self.predictor.batch_size = GPU_BATCH
        self.class_names = [category.name for category in stored_classes(package[CLASSES_FILE])]
        self.network = threading.Lock()

    def ready(self) -> str:
        """The id of its node. Returns when the network is loaded."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def predict(self, job: PartJob) -> PartReport:
        return predict_part(
            job, self.predictor, self.class_names, threads=self.threads, network=self.network
        )
