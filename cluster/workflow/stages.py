"""A pipeline stage: a name, what identifies it, and a function; run, or reused when its outputs are
there already.

The fingerprint is a digest of the identity fields and of the fingerprints of the stages it builds
on. Worker counts and URIs are no identity: the same data elsewhere, or more machines, are the same
stage. The output folder carries a readable name and the fingerprint, and its manifest, stage.json,
is written last; a folder without one is a stage that did not finish, and its function is called
again to go on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import files, preflight, uris

MANIFEST = "stage.json"
SCHEMA_VERSION = 1
SHOWN = 8
"""Characters of the fingerprint in names and messages."""


@dataclass(frozen=True)
class Finished:
    """A stage that is done. `values` are what its function returned: plain JSON, for the stages
    after it.
    """

    fingerprint: str
    folder: str
    values: dict[str, Any]
    reused: bool = False


def fingerprint(stage: str, identity: Mapping[str, Any], upstream: Sequence[Finished] = ()) -> str:
    """64 hex characters; the order of the identity's fields does not matter, that of the upstream
    stages does.
    """
    content = {
        "schema": SCHEMA_VERSION,
        "stage": stage,
        "identity": identity,
        "upstream": [one.fingerprint for one in upstream],
    }
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def digest_of_file(uri: str) -> str:
    """sha256 of the bytes. `UsageError` when it is not there."""
    preflight.check_readable(uri)
    return hashlib.sha256(files.read_bytes(uri)).hexdigest()


def digest_of_folder(uri: str) -> str:
    """sha256 of the names and sizes of all files below the folder. `UsageError` when it is not
    there.

    A file replaced by another one of exactly its size is not noticed; reading every byte of the
    pictures would cost as much as the stage itself.
    """
    uri = uris.absolute(uri)
    preflight.check_readable(uri)
    listing = [(name[len(uri) + 1 :], size) for name, size in files.list_files(uri)]
    return hashlib.sha256(json.dumps(listing, ensure_ascii=False).encode()).hexdigest()


def run_or_reuse(
    stage: str,
    parent: str,
    name: str,
    work: Callable[[str], dict[str, Any] | None],
    *,
    identity: Mapping[str, Any],
    upstream: Sequence[Finished] = (),
    outputs: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Finished:
    """Call `work(folder)` with `<parent>/<name>-<fingerprint>`, or find that it was done, and say
    which.

    `work` returns plain JSON or nothing. `outputs` are files, in the folder or absolute, that must
    still be there for the stage to be reused. An error leaves no manifest, so the same call goes on
    with the same folder.
    """
    digest = fingerprint(stage, identity, upstream)
    folder = uris.join(uris.absolute(parent), f"{name}-{digest[:SHOWN]}")
    before = read_manifest(folder, digest)
    gone = [
        uri for uri in (uris.join(folder, output) for output in outputs) if not files.exists(uri)
    ]
    if before is not None and not gone:
        say(f"[{stage}] reused (fingerprint {digest[:SHOWN]}) {folder}")
        return Finished(digest, folder, before, True)
    why = f"{gone[0]} is gone, " if before is not None else ""
    say(f"[{stage}] {why}running (fingerprint {digest[:SHOWN]}) {folder}")
    start = time.monotonic()
    values = work(folder) or {}
    seconds = time.monotonic() - start
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "fingerprint": digest,
        "identity": dict(identity),
    }
    manifest |= {"seconds": round(seconds, 1), "values": values}
    files.write_json(uris.join(folder, MANIFEST), manifest)
    say(f"[{stage}] done in {seconds:.0f} s")
    return Finished(digest, folder, values, False)


def read_manifest(folder: str, digest: str) -> dict[str, Any] | None:
    """The values of the finished stage in this folder; None where it is not finished, or another
    stage's fingerprint starts alike.
    """
    try:
        manifest = files.read_json(uris.join(folder, MANIFEST))
    except FileNotFoundError:
        return None
    return manifest["values"] if manifest.get("fingerprint") == digest else None
