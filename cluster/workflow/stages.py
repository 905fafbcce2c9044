"""A stage of a workflow: a name, what it builds on, what identifies it, and a function; run, or
reused when its outputs are there already.

The fingerprint is a digest of the identity fields and of the fingerprints of the inputs. Worker
counts and URIs are not part of the identity: the same data elsewhere, or more machines, are the
same stage. The output folder carries a readable name and the fingerprint. Its manifest, stage.json,
is written last; a folder without one is a stage that did not finish, and its function is called
again to continue:

    {"schema_version": 1, "stage": "train", "fingerprint": "3f0c...", "identity": {...},
     "seconds": 61.3, "values": {...}}
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import files, preflight, record_files, uris

MANIFEST = "stage.json"
SCHEMA_VERSION = 1
SHOWN = 8
"""Characters of the fingerprint in names and messages."""

Values = Mapping[str, Any]
"""What a stage returns for the stages after it: plain JSON, with keys of the stage's own."""


@dataclass(frozen=True)
class Finished:
    """A stage that is done. `values` are what its function returned."""

    fingerprint: str
    folder: str
    values: Values
    reused: bool = False


Results = Mapping[str, Finished]
"""The finished stages that a stage may see, by their names: its `inputs` and `reads`."""


@dataclass(frozen=True)
class Stage:
    """One step of a workflow, as data.

    `folder` is the folder below the storage root that holds the outputs of all such stages. The
    fingerprints of the `inputs` are part of this stage's fingerprint, in their order; those of
    the `reads` are not: what `identity` takes from them is. `identity` gives plain JSON.
    `outputs` are files in the stage's folder that must be there for the stage to be reused.
    `gone` gets the folder and the values of the finished stage, and names what it has left in
    another place and is there no more. `call` gets the stage's folder.
    """

    name: str
    folder: str
    inputs: tuple[str, ...]
    identity: Callable[[Results], Mapping[str, Any]]
    outputs: tuple[str, ...]
    call: Callable[[str, Results], Values | None]
    reads: tuple[str, ...] = ()
    gone: Callable[[str, Values], str | None] = lambda folder, values: None


def fingerprint(stage: str, identity: Mapping[str, Any], upstream: Sequence[Finished] = ()) -> str:
    """64 hex characters. The order of the identity's fields does not matter, the order of the
    upstream stages does.
    """
    content = {
        "schema": SCHEMA_VERSION,
        "stage": stage,
        "identity": identity,
        "upstream": [stage.fingerprint for stage in upstream],
    }
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def digest_of_file(uri: str) -> str:
    """sha256 of the bytes. `UsageError` when the file is not there."""
    preflight.check_readable(uri)
    return hashlib.sha256(files.read_bytes(uri)).hexdigest()


def digest_of_folder(uri: str) -> str:
    """sha256 of the names and sizes of all files below the folder, or of the name and size of a
    file. `UsageError` when nothing is there.

    A file replaced by another one of exactly its size is not noticed; reading every byte of the
    images would cost as much as the stage itself.
    """
    uri = uris.absolute(uri)
    preflight.check_readable(uri)
    alone = files.size(uri)
    found = files.list_files(uri) if alone is None else [(uri, alone)]
    listing = [(name[len(uri) + 1 :] or name, size) for name, size in found]
    return hashlib.sha256(json.dumps(listing, ensure_ascii=False).encode()).hexdigest()


def run_or_reuse(
    stage: Stage,
    results: Results,
    *,
    root: str,
    name: str,
    before_call: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> Finished:
    """Call the stage's function with the folder `<root>/<stage.folder>/<name>-<fingerprint>`, or
    find that the stage is done, and say which.

    `before_call` is called first where the stage is not reused. An error leaves no manifest, so the
    same call continues in the same folder.
    """
    identity = stage.identity(results)
    digest = fingerprint(stage.name, identity, [results[input_] for input_ in stage.inputs])
    folder = uris.join(uris.absolute(root), stage.folder, f"{name}-{digest[:SHOWN]}")
    before, missing = look_at(stage, folder, digest)
    if before is not None and missing is None:
        say(f"[{stage.name}] reused (fingerprint {digest[:SHOWN]}) {folder}")
        return Finished(digest, folder, before, True)
    why = f"{missing} is gone, " if missing else ""
    say(f"[{stage.name}] {why}running (fingerprint {digest[:SHOWN]}) {folder}")
    start = time.monotonic()
    before_call()
    values = stage.call(folder, results) or {}
    seconds = time.monotonic() - start
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "stage": stage.name,
        "fingerprint": digest,
        "identity": dict(identity),
        "seconds": round(seconds, 1),
        "values": dict(values),
    }
    files.write_json(uris.join(folder, MANIFEST), manifest)
    say(f"[{stage.name}] done in {seconds:.0f} s")
    return Finished(digest, folder, values, False)


def look_at(stage: Stage, folder: str, digest: str) -> tuple[Values | None, str | None]:
    """The values of the stage where it has finished in this folder, else None; and what it made
    that is there no more.
    """
    values = _read_manifest(folder, digest)
    return values, None if values is None else _missing(stage, folder, values)


def _missing(stage: Stage, folder: str, values: Values) -> str | None:
    """What the finished stage made and is there no more."""
    for uri in (uris.join(folder, output) for output in stage.outputs):
        if not files.exists(uri):
            return uri
    return stage.gone(folder, values)


def _read_manifest(folder: str, digest: str) -> Values | None:
    """The values of the finished stage in this folder; None where the stage is not finished, or the
    fingerprint of another stage starts with the same characters.
    """

    def values(manifest: Any) -> Values | None:
        return manifest["values"] if manifest.get("fingerprint") == digest else None

    try:
        return record_files.read(
            uris.join(folder, MANIFEST), values, remedy="delete it, and the stage runs again"
        )
    except FileNotFoundError:
        return None
