"""Finds and downloads the checkpoint from which a run continues."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from cluster.errors import DataError, UsageError
from cluster.runs import run_folder
from cluster.runs.events import Tell, TrainingWarning
from cluster.storage import files
from detector.checkpoint import verify_checkpoint


@dataclass(frozen=True)
class Newest:
    """The newest whole checkpoint of a run."""

    uri: str | None
    """None where the run has no checkpoint yet."""
    damaged: tuple[str, ...]
    """URIs of newer ones that cannot be read."""


def download_newest(run: str, folder: str, *, tell: Tell) -> Newest:
    """Download the newest checkpoint that is whole, verified, into the local `folder`.

    Each one that is passed over is told. `DataError` if all are damaged: a program should not
    decide to train from the start again.
    """
    passed_over: list[str] = []
    reasons = []
    for uri, complete in reversed(run_folder.checkpoint_folders(run).items()):
        try:
            if not complete:
                raise DataError(f"{uri}: its upload is incomplete")
            download(uri, folder)
        except DataError as error:
            tell(TrainingWarning(f"{error}; the checkpoint before it is used"))
            reasons += [str(error)] if complete else []
            passed_over.append(uri)
            continue
        return Newest(uri, tuple(passed_over))
    if reasons:
        raise DataError(
            f"{run}: none of its {len(reasons)} checkpoints can be read ({reasons[0]}); restore one"
            " or take another --name"
        )
    return Newest(None, tuple(passed_over))


def download(uri: str, folder: str) -> dict[str, Any]:
    """Download a checkpoint into a local folder and return its state.json. `DataError` where a file
    is missing or its content has changed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        files.download_folder(uri, folder)
        return verify_checkpoint(folder)
    except (ValueError, FileNotFoundError) as error:
        raise DataError(f"{uri}: is damaged ({error})") from error
    except KeyError as error:
        raise UsageError(other_version(uri, error)) from error


def other_version(uri: str, error: KeyError) -> str:
    return (
        f"{uri}: {error} is missing in it; another version of this code wrote it; continue with"
        " that version, or start anew under another --name"
    )
