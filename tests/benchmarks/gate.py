"""How often the gate errs, on pairs of models of which the true difference is known.

    python tests/benchmarks/gate.py [--pairs 1000 --images 500]

Each image has one object, which a model finds with a known probability, each model for itself,
with an IoU between 0.5 and 1. AP then is 0.55 times that probability. Of models that are worse by
exactly epsilon at most 1 - confidence may pass. What else passes, and how often an equal or better
model is refused, says how much a set of so many images can tell.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from cluster.judging.gate import Loaded, judge
from cluster.judging.gate_config import GateConfig
from detector.coco_matching import IOU_THRESHOLDS
from tests.support.hits import scored

LOADED = Loaded(None, "4 pictures", 20.0, "CPU", 10.0)
SHARE = 0.7
"""That the champion finds."""
AP_OF_FOUND = float(np.mean((1 - IOU_THRESHOLDS) / 0.5))
"""Mean over COCO's thresholds of the share of found objects that fit well enough."""


def found(share: float, images: int, random: np.random.Generator) -> np.ndarray:
    """The IoU of each image."""
    return np.where(random.random(images) < share, random.uniform(0.5, 1, images), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the gate errs.")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.05])
    asked = parser.parse_args()
    labels = [0] * asked.images
    random = np.random.default_rng(0)
    for epsilon in asked.epsilon:
        # One class of one size: its limits are those of AP itself and would be a second test.
        limits = GateConfig(epsilon=epsilon, class_drop=1, size_drop=1, resamples=asked.resamples)
        for times in (-2, -1, 0, 1, 2):
            true = times * epsilon
            passed = 0
            for seed in range(asked.pairs):
                pair = [
                    scored(name, found(share, asked.images, random), labels, ("a",))
                    for name, share in (
                        ("candidate", SHARE + true / AP_OF_FOUND),
                        ("champion", SHARE),
                    )
                ]
                drawn = limits.model_copy(update={"seed": seed})
                passed += judge(*pair, LOADED, drawn, data="", data_digest="").passed
            print(
                f"{asked.images} images, epsilon {epsilon:g}, true difference {true:+.3f}:"
                f" {100 * passed / asked.pairs:.1f} % of {asked.pairs} pairs pass",
                flush=True,
            )


if __name__ == "__main__":
    main()
