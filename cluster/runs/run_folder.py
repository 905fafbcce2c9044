"""A training run's folder at its storage URI, and the records in it.

config.json        the configuration that the run's name belongs to: `Claim`
tracking.json      the MLflow run of this training run: `TrackingRecord`
checkpoints/images-000000004100/
                   a checkpoint (detector/checkpoint.py); state.json is uploaded last
waiting/, evaluations.json, best.json
                   requested and finished evaluations (cluster/runs/evaluations.py)
finished.json      training has ended, after all epochs or early: `Finished`

Records carry the version of their keys; without one it is 1.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.errors import DataError, UsageError, instead_of
from cluster.storage import files, record_files
from cluster.storage.flat_json import flatten
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
MOST_BESIDE = 100
"""Folders that are looked into for a name that may be meant; in S3 each is a request."""
Record = TypeVar("Record")
VERSION = 2
"""Of the records below. Version 1 had no "version", and "born" for "run_uuid"."""
_REMEDY = "restore it from a copy, or give another run"


@dataclass(frozen=True)
class Claim:
    """The run that owns the folder's name."""

    identity: Mapping[str, Any]
    """The settings that make two runs the same run, see `identity.identity`."""
    config: Mapping[str, Any]
    """`TrainConfig`, dumped."""
    run_uuid: str
    """Another one when the folder was deleted and made again; empty in folders of the oldest
    version.
    """

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "identity": dict(self.identity),
            "config": dict(self.config),
            "run_uuid": self.run_uuid,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Claim:
        run_uuid = stored.get("run_uuid", stored.get("born", ""))
        return cls(stored["identity"], stored["config"], run_uuid)


@dataclass(frozen=True)
class TrackingRecord:
    """The MLflow run that belongs to a training run or a sweep."""

    uri: str
    """Of the MLflow server or store."""
    experiment: str
    run_id: str
    complete: bool = False
    """MLflow has everything of the finished run."""

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "uri": self.uri,
            "experiment": self.experiment,
            "run_id": self.run_id,
            "complete": self.complete,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TrackingRecord:
        return cls(
            stored["uri"], stored["experiment"], stored["run_id"], stored.get("complete", False)
        )


@dataclass(frozen=True)
class Finished:
    """The end of a training."""

    images_seen: int
    epochs: int
    stopped: str | None = None
    """The reason why training stopped early; None: all epochs are done."""

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "images_seen": self.images_seen,
            "epochs": self.epochs,
            "stopped": self.stopped,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Finished:
        return cls(stored["images_seen"], stored["epochs"], stored.get("stopped"))


def read(run: str, name: str) -> dict[str, Any] | None:
    """One of the run's JSON files, or None where it does not exist (yet). `DataError` where it
    holds no object.
    """
    try:
        content = files.read_json(join(run, name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(content, dict):
        raise DataError(f"{join(run, name)}: is damaged (it holds no JSON object); {_REMEDY}")
    return content


def write(run: str, name: str, content: Mapping[str, Any]) -> None:
    files.write_json(join(run, name), content)


def read_claim(run: str) -> Claim | None:
    return _read_record(run, CONFIG, Claim.from_json)


def read_tracking(run: str) -> TrackingRecord | None:
    return _read_record(run, TRACKING, TrackingRecord.from_json)


def write_tracking(run: str, record: TrackingRecord) -> None:
    write(run, TRACKING, record.to_json())


def read_finished(run: str) -> Finished | None:
    return _read_record(run, FINISHED, Finished.from_json)


def write_finished(run: str, finished: Finished) -> None:
    write(run, FINISHED, finished.to_json())


def _read_record(
    run: str, name: str, from_json: Callable[[Mapping[str, Any]], Record]
) -> Record | None:
    """None where the file does not exist. `DataError` where it is not such a record."""
    stored = read(run, name)
    if stored is None:
        return None
    if stored.get("version", 1) not in (1, VERSION):
        raise DataError(
            f"{join(run, name)}: version {stored['version']!r} is not known; use the version of the"
            " code that wrote it"
        )
    return record_files.build(stored, from_json, join(run, name), remedy=_REMEDY)


def claim(
    run: str,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    *,
    begun: bool,
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """Give the folder to this configuration, or confirm that it owns it already, and return the
    `run_uuid`. `UsageError` names the differences to the run that owns the name. A setting that the
    version of the owner did not know has its value in `defaults`, see `default_identity`.

    A run that has not `begun` (it reached no checkpoint; the cluster refused it, for example) has
    nothing to protect: another configuration may take its name.
    """
    owner = read_claim(run)
    differing = changes(owner, identity, defaults) if owner else {}
    if owner is None or not begun:
        run_uuid = owner.run_uuid if owner and not differing else uuid.uuid4().hex
        write(run, CONFIG, Claim(identity, config, run_uuid).to_json())
        return run_uuid
    if differing:
        first = list(differing.items())[:4]
        shown = "; ".join(f"{field} was {was!r}, is {now!r}" for field, (was, now) in first)
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UsageError(
            f"{run}: this run was started with another configuration ({shown}{more}); choose"
            " another --name, or repeat the old values to continue it"
        )
    return owner.run_uuid


def changes(
    owner: Claim, identity: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """The fields in which a run that owns a folder differs from this one: what each was and is.
    `defaults`: see `claim`.
    """
    mine, theirs = flatten(identity), flatten(owner.identity)
    unknown_to_owner = mine.keys() - theirs.keys()
    theirs |= {k: v for k, v in flatten(defaults or {}).items() if k in unknown_to_owner}
    return {
        k: (theirs.get(k), mine.get(k))
        for k in sorted(mine.keys() | theirs.keys())
        if mine.get(k) != theirs.get(k)
    }


def beside(folder: str, file: str = CONFIG, *, otherwise: str = "check --run") -> str:
    """What a user may mean by a folder without the file that it should have: a folder beside it
    that has it; where there is none, `otherwise`.
    """
    parent, name = os.path.split(folder)
    names = files.list_names(parent)[:MOST_BESIDE] if files.size(parent) is None else []
    known = [each for each in names if files.exists(join(parent, each, file))]
    return f"{instead_of(name, known)} in {parent}" if known else otherwise


def refuse_no_checkpoint(uri: str, *, option: str) -> None:
    """`UsageError` where `uri` is no complete checkpoint of a run."""
    if files.exists(join(uri, STATE_FILE)):
        return
    folder, name = os.path.split(uri)
    run = os.path.dirname(folder) if os.path.basename(folder) == CHECKPOINTS else uri
    run = folder if name == CHECKPOINTS else run
    known = [os.path.basename(each) for each in checkpoints(run)]
    if known:
        remedy = f"{instead_of(name, known[::-1])} in {join(run, CHECKPOINTS)}"
    elif files.exists(join(run, CONFIG)):
        remedy = f"the run {run} has none"
    else:
        remedy = beside(run, otherwise="give <storage>/runs/<name>/checkpoints/images-...")
    state = f"is not a checkpoint, it has no {STATE_FILE}"
    raise UsageError(
        f"{option} {uri}: {state if files.exists(uri) else 'there is no such folder'}; {remedy}"
    )


def checkpoints(run: str) -> list[str]:
    """URIs of the complete checkpoints, oldest first."""
    return [uri for uri, complete in checkpoint_folders(run).items() if complete]


def checkpoint_folders(run: str) -> dict[str, bool]:
    """URI of each checkpoint -> whether it is complete, oldest first: the names carry the images
    seen with leading zeros, and the last file is uploaded last. Whatever else lies there is not
    ours: a file that a file manager left, a copy under another name.
    """
    folder = join(run, CHECKPOINTS)
    complete: dict[str, bool] = {}
    for uri, _ in files.list_files(folder) if files.exists(folder) else ():
        parent, name = os.path.split(uri)
        if os.path.dirname(parent) != folder or not is_checkpoint_name(os.path.basename(parent)):
            continue
        complete[parent] = complete.get(parent, False) or name == STATE_FILE
    return dict(sorted(complete.items()))


def is_checkpoint_name(name: str) -> bool:
    return re.fullmatch(r"images-\d{12,}", name) is not None


def checkpoint_uri(run: str, images_seen: int) -> str:
    return join(run, CHECKPOINTS, f"images-{images_seen:012d}")
