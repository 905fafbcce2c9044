"""A training run's folder at its storage URI, and what may be read from it.

config.json      the configuration that names the run; another one under the same name is refused
tracking.json    which MLflow run belongs to it, and whether that has everything ("complete")
checkpoints/images-000000004100/   a checkpoint (detector/checkpoint.py,
cluster/training/checkpoints.py); state.json is uploaded last waiting/, evaluations.json   which
checkpoints are to be evaluated, and which were (cluster/runs/evaluations.py) best.json        the
checkpoint with the highest AP so far (cluster/runs/evaluations.py) finished.json    written when all epochs are done, or training has
stopped early
"""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

from cluster.errors import UsageError
from cluster.storage import files
from cluster.storage.uris import join

# The last file of a checkpoint; detector.checkpoint has the same name, and importing it would bring
# torch into every command line.
STATE_FILE = "state.json"
CONFIG, TRACKING, BEST, FINISHED, CHECKPOINTS = (
    "config.json",
    "tracking.json",
    "best.json",
    "finished.json",
    "checkpoints",
)


def read(run: str, name: str) -> dict[str, Any] | None:
    """One of the run's JSON files, or None where it is not there (yet)."""
    try:
        return files.read_json(join(run, name))
    except FileNotFoundError:
        return None


def write(run: str, name: str, content: dict[str, Any]) -> None:
    files.write_json(join(run, name), content)


def claim(run: str, config: dict[str, Any], identity: dict[str, Any], *, begun: bool) -> str:
    """Make the folder this configuration's, or find that it already is, and return the run's
    `born`: a folder that was deleted and made again holds another run. `UsageError` names what
    differs from the run that has the name.

    A start that has not `begun` (was refused by the cluster, say, and reached no checkpoint) has
    nothing to protect: its name is free for another configuration.
    """
    before = read(run, CONFIG)
    mine, theirs = flatten(identity), flatten(before["identity"] if before else {})
    differing = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
    if before is None or not begun:
        born = before.get("born", "") if before and not differing else uuid.uuid4().hex
        write(run, CONFIG, {"identity": identity, "config": config, "born": born})
        return born
    if differing:
        shown = "; ".join(f"{k} was {theirs.get(k)!r}, is {mine.get(k)!r}" for k in differing[:4])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UsageError(
            f"{run}: this run was started with another configuration ({shown}{more}); choose"
            " another --name, or repeat the old values to continue it"
        )
    return before.get("born", "")


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    if not isinstance(tree, dict):
        return {prefix: json.loads(json.dumps(tree))}
    return {
        k: v
        for name, value in tree.items()
        for k, v in flatten(value, f"{prefix}.{name}" if prefix else name).items()
    }


def checkpoints(run: str) -> list[str]:
    """URIs of the complete checkpoints, oldest first."""
    return [uri for uri, complete in checkpoint_folders(run).items() if complete]


def checkpoint_folders(run: str) -> dict[str, bool]:
    """URI -> whether its last file is there, oldest first: names carry the images seen with leading
    zeros.
    """
    folder = join(run, CHECKPOINTS)
    found: dict[str, bool] = {}
    for uri, _ in files.list_files(folder) if files.exists(folder) else ():
        parent, name = os.path.split(uri)
        found[parent] = found.get(parent, False) or name == STATE_FILE
    return dict(sorted(found.items()))


def checkpoint_uri(run: str, images_seen: int) -> str:
    return join(run, CHECKPOINTS, f"images-{images_seen:012d}")
