"""The sha256 of every file of a registered model: a tag of the version, compared before a file of a
download is read or run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import DataError

FILES_TAG = "files_sha256"
_ADDED = "registered_model_meta"
"""MLflow writes this file beside a version that it downloads."""
NAMED = 3
"""Files that an error names."""


def file_digests(folder: str) -> dict[str, str]:
    """sha256 of each file below a local folder, by path with slashes. A link counts as what it
    points to.
    """
    root = Path(folder)
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name != _ADDED:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def as_tag(digests: Mapping[str, str]) -> str:
    return json.dumps(dict(digests), separators=(",", ":"), sort_keys=True)


def refuse_changed(folder: str, tag: str, *, version: str) -> None:
    """`DataError` names files of the download in `folder` that are not those of the tag: changed,
    missing, or added.
    """
    recorded, found = json.loads(tag), file_digests(folder)
    wrong = [f"{name} is missing" for name in sorted(recorded.keys() - found.keys())]
    wrong += [f"{name} was added" for name in sorted(found.keys() - recorded.keys())]
    wrong += [
        f"{name} has changed"
        for name in sorted(found.keys() & recorded.keys())
        if found[name] != recorded[name]
    ]
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise DataError(
            f"{version}: its files are not those that were registered: {', '.join(wrong[:NAMED])}"
            f"{more}; find out who changed the artifacts; `register` of its run makes a new version"
        )
