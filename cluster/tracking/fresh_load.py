"""A downloaded model, loaded as a server loads it: in a process of its own, with its own code and
without pickle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import on_one_line
from cluster.judging.gate import Loaded
from cluster.tracking.examples import Example, as_detections, difference, read_examples
from cluster.tracking.file_digests import FILES_TAG
from cluster.tracking.logged_package import EXAMPLES, artifact_folder, package_folder
from cluster.tracking.registry import Version

SCRIPT = Path(__file__).with_name("load_model.py")
UNVERIFIED = (
    "not loaded: it was registered before the files of its code were verified; `register` of its"
    " run makes a version that is"
)


def load(model: str, version: Version, tags: Mapping[str, str]) -> Loaded:
    """Load the model in a local folder and compare what it detects in its example pictures with
    what was recorded. Code that is not verified, by the `tags` of the version, is not run.
    """
    package = package_folder(model, version)
    size = sum(path.stat().st_size for path in Path(package).rglob("*") if path.is_file()) / 1e6
    folder = artifact_folder(model, EXAMPLES, version)
    examples = [] if folder is None else read_examples(folder)
    compared = f"{len(examples)} pictures" if examples else "no picture: it has no examples"
    if FILES_TAG not in tags:
        return Loaded(UNVERIFIED, compared, None, "", size)
    kept_out = {"PYTHONPATH", "PYTHONSTARTUP"}
    clean = {name: value for name, value in os.environ.items() if name not in kept_out}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), model, *(example.path for example in examples)],
        cwd=os.path.dirname(model),
        env={**clean, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Loaded(f"does not load: {on_one_line(last)[:300]}", compared, None, "", size)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    error = _not_as_recorded(examples, answer["found"])
    return Loaded(error, compared, answer["milliseconds"], answer["device"], size)


def _not_as_recorded(examples: Sequence[Example], found: Sequence[dict[str, Any]]) -> str | None:
    for example, each in zip(examples, found, strict=True):
        wrong = difference(example.detections, as_detections(each))
        if wrong is not None:
            return f"{os.path.basename(example.path)}: {wrong}"
    return None
