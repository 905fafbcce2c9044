"""Load a logged model as a server would, and print what it detects: `python load_model.py MODEL
IMAGE...`, run as a process of its own; nothing imports it.

It imports nothing of this project: the code is that of the model. The last line is JSON: `found`, a
list of boxes, scores and labels of each image, `milliseconds`, the median time of one image, and
`device`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import torch

ROUNDS = 5


def main(folder: str, paths: list[str]) -> None:
    model = mlflow.pyfunc.load_model(folder)
    images = [Path(path).read_bytes() for path in paths]
    found: list[dict[str, object]] = []
    if images:
        answers = model.predict(pd.DataFrame({"image": images}))
        found = answers[["boxes", "scores", "labels"]].to_dict("records")
    # The rounds follow one that warmed up.
    seconds = []
    for image in images * ROUNDS:
        begun = time.perf_counter()
        model.predict(pd.DataFrame({"image": [image]}))
        seconds.append(time.perf_counter() - begun)
    is_cuda = torch.cuda.is_available()
    threads = f"CPU, {torch.get_num_threads()} threads"
    answer = {
        "found": found,
        "milliseconds": 1000 * statistics.median(seconds) if seconds else None,
        "device": torch.cuda.get_device_name() if is_cuda else threads,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
