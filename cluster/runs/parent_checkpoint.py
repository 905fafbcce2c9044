"""A new run that starts from another run's checkpoint, from its weights alone or its full state."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.errors import DataError, UsageError
from cluster.runs import run_folder
from cluster.runs.config import TrainOptions
from cluster.runs.package import Package, package_of
from cluster.shards.index import ShardSet
from cluster.storage import files, preflight, uris
from cluster.storage.flat_json import flatten
from cluster.storage.scratch import scratch_folder


def digest(uri: str) -> str:
    """sha256 of the checkpoint's content, which stays the same when it is moved. `UsageError` where
    there is no checkpoint, `DataError` where it is damaged.
    """
    # Imported here: it imports torch.
    from detector.checkpoint import parse_state

    uri = uris.absolute(uri)
    preflight.check_reachable(uri)
    run_folder.refuse_no_checkpoint(uri, option="from_checkpoint")
    try:
        return parse_state(files.read_bytes(uris.join(uri, run_folder.STATE_FILE)))["sha256"]
    except KeyError as error:
        raise _of_another_version(uri, error) from error
    except ValueError as error:
        raise _damaged(uri, error) from error


def check(config: TrainOptions, train_set: ShardSet) -> str:
    """Preflight: read and verify every file of `config.from_checkpoint`, check that it fits the new
    run, and return its `digest`.
    """
    from detector.checkpoint import verify_checkpoint

    assert config.from_checkpoint is not None
    sha256 = digest(config.from_checkpoint)
    uri = uris.absolute(config.from_checkpoint)
    with _local_copy(uri) as folder:
        try:
            state = verify_checkpoint(folder)
        except ValueError as error:
            raise _damaged(uri, error) from error
    try:
        package = Package.from_json(state["package"])
    except KeyError as error:
        raise _of_another_version(uri, error) from error
    _refuse_mismatch(uri, state, package, config, train_set)
    return sha256


def _of_another_version(uri: str, error: KeyError) -> UsageError:
    return UsageError(
        f"from_checkpoint {uri}: {error} is missing in it, another version of this code wrote it;"
        " take a checkpoint of this version"
    )


def _damaged(uri: str, error: ValueError) -> DataError:
    return DataError(f"from_checkpoint {uri}: is damaged ({error}); take another checkpoint")


@contextmanager
def _local_copy(uri: str) -> Iterator[str]:
    """The folder itself, or a temporary copy of a folder in S3."""
    if not uris.is_remote(uri):
        yield uri
        return
    with scratch_folder("checkpoint") as folder:
        files.download_folder(uri, folder)
        yield folder


def _refuse_mismatch(
    uri: str, state: Mapping[str, Any], theirs: Package, config: TrainOptions, train_set: ShardSet
) -> None:
    """`UsageError` naming what the checkpoint and the new run must have in common for
    `config.from_state` and have not.
    """
    mine = package_of(config, train_set)
    if mine.class_names != theirs.class_names:
        remedy = (
            f"--pretrained {uris.join(uri, 'model.safetensors')} takes over all weights but those"
            " of the class layer"
            if config.model.architecture == "retinanet"
            else "take data with the same classes"
        )
        raise UsageError(
            f"from_checkpoint {uri}: its {len(theirs.classes)} classes {theirs.class_names[:5]} are"
            f" not the {len(mine.classes)} of data.train {mine.class_names[:5]}; {remedy}"
        )
    # The choice of the weights that are trained is no part of them.
    free = set() if config.from_state == "full" else {"frozen_stages"}
    their_model, my_model = (
        {name: value for name, value in package.description.model.items() if name not in free}
        for package in (theirs, mine)
    )
    _refuse_differences(
        f"from_checkpoint {uri}: has another model",
        their_model,
        my_model,
        remedy="take the model settings that it was trained with",
    )
    if config.from_state == "weights":
        return
    _refuse_differences(
        f"from_checkpoint {uri}: its state cannot be continued",
        _state_settings(state["config"], state["data_digest"]),
        _state_settings(config.model_dump(mode="json"), train_set.digest),
        remedy="take the same settings, or --from_state weights",
    )
    if state["epoch"] + (not state["left"]) >= config.training.epochs:
        raise UsageError(
            f"from_checkpoint {uri}: has seen {state['images_seen']} images, all that"
            f" training.epochs {config.training.epochs} asks for; raise it, or take --from_state"
            " weights"
        )


def _state_settings(config: Mapping[str, Any], data_digest: str) -> dict[str, Any]:
    """The settings that the optimizer, the average and the position in the data depend on."""
    optimizer = {
        "name": config["optimizer"]["name"],
        "ema_images": "above 0" if config["optimizer"]["ema_images"] else 0,
    }
    return {
        "data.train": data_digest[:12],
        "sampling": config["sampling"],
        "training": {"seed": config["training"]["seed"]},
        "optimizer": optimizer,
    }


def _refuse_differences(
    message: str, theirs: Mapping[str, Any], mine: Mapping[str, Any], *, remedy: str
) -> None:
    theirs, mine = flatten(theirs), flatten(mine)
    differing = sorted(
        name for name in theirs.keys() | mine.keys() if theirs.get(name) != mine.get(name)
    )
    if not differing:
        return
    shown = "; ".join(
        f"{name} is {theirs.get(name)!r} there, {mine.get(name)!r} here" for name in differing[:3]
    )
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise UsageError(f"{message} ({shown}{more}); {remedy}")


def publish(uri: str, folder: str, *, name: str, root: str) -> str:
    """A URI at which every node can read the checkpoint: its own one in S3 and below the storage
    `root`, else that of a copy in `<folder>/start/`. `name`: its `digest`.
    """
    uri = uris.absolute(uri)
    if uris.is_remote(uri) or uris.is_below(uri, uris.absolute(root)):
        return uri
    copy = uris.join(folder, "start", f"{name[:12]}-{os.path.basename(uri)}")
    if not files.exists(uris.join(copy, run_folder.STATE_FILE)):
        files.upload_folder(uri, copy, last=run_folder.STATE_FILE)
    return copy
