"""A new run that starts from another run's checkpoint: its weights alone, or its full state."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import DataError, UsageError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig, package_of
from cluster.shards.index import ShardSet
from cluster.storage import files, preflight, uris


def digest(uri: str) -> str:
    """What names the checkpoint's content, wherever it lies. `UsageError` where there is none,
    `DataError` where it is damaged.
    """
    # Imported here: torch comes with it.
    from detector.checkpoint import parse_state

    uri = uris.absolute(uri)
    preflight.check_readable(uri)
    try:
        return parse_state(files.read_bytes(uris.join(uri, run_folder.STATE_FILE)))["sha256"]
    except (FileNotFoundError, NotADirectoryError) as error:
        inside = run_folder.checkpoints(uri)
        remedy = (
            f"name one of the run's, such as {inside[-1]}"
            if inside
            else "give <storage>/runs/<name>/checkpoints/images-..."
        )
        raise UsageError(
            f"from_checkpoint {uri}: is no checkpoint, there is no {run_folder.STATE_FILE} in it;"
            f" {remedy}"
        ) from error
    except KeyError as error:
        raise UsageError(
            f"from_checkpoint {uri}: {error} is missing in it; another version of this code wrote"
            " it, take one of this"
        ) from error
    except ValueError as error:
        raise DataError(
            f"from_checkpoint {uri}: is damaged ({error}); take another checkpoint"
        ) from error


def check(config: TrainConfig, train_set: ShardSet) -> str:
    """Preflight: `digest` of `config.from_checkpoint`, every file of which is read and whole, and
    fits the run that is to start from it.
    """
    from detector.checkpoint import verify_checkpoint

    name = digest(config.from_checkpoint)
    uri = uris.absolute(config.from_checkpoint)
    with local_copy(uri) as folder:
        try:
            state = verify_checkpoint(folder)
        except ValueError as error:
            raise DataError(
                f"from_checkpoint {uri}: is damaged ({error}); take another checkpoint"
            ) from error
    refuse_misfits(uri, state, config, train_set)
    return name


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """The folder itself, or a copy of one in S3 for as long as it is needed."""
    if not uri.startswith(uris.S3):
        yield uri
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        files.download_folder(uri, folder)
        yield folder


def refuse_misfits(
    uri: str, state: dict[str, Any], config: TrainConfig, train_set: ShardSet
) -> None:
    """`UsageError` naming what the checkpoint and the new run do not share, and must for
    `config.from_state`.
    """
    mine, theirs = package_of(config, train_set), state["package"]
    if mine["classes"] != theirs["classes"]:
        names = [[entry["name"] for entry in package["classes"]] for package in (theirs, mine)]
        remedy = (
            f"; --pretrained {uris.join(uri, 'model.safetensors')} takes over all but the layer of"
            " the classes"
        )
        raise UsageError(
            f"from_checkpoint {uri}: its {len(names[0])} classes {names[0][:5]} are not the"
            f" {len(names[1])} of data.train {names[1][:5]}"
            + (
                remedy
                if config.model.architecture == "retinanet"
                else "; take data with the same classes"
            )
        )
    # Which weights are trained is no part of them.
    free = set() if config.from_state == "full" else {"frozen_stages"}
    network = [
        {k: v for k, v in package["description"]["model"].items() if k not in free}
        for package in (theirs, mine)
    ]
    refuse_differences(
        uri,
        "is of another model",
        *network,
        remedy="take the model settings that it was trained with",
    )
    if config.from_state == "weights":
        return
    here = going_on(config.model_dump(mode="json"), train_set.digest)
    refuse_differences(
        uri,
        "cannot be gone on from",
        going_on(state["config"], state["data_digest"]),
        here,
        remedy="take the same, or --from_state weights",
    )
    if state["epoch"] + (not state["left"]) >= config.training.epochs:
        done = (
            f"has seen {state['images_seen']} images, all that training.epochs"
            f" {config.training.epochs} asks for"
        )
        raise UsageError(f"from_checkpoint {uri}: {done}; raise it, or take --from_state weights")


def going_on(config: dict[str, Any], data: str) -> dict[str, Any]:
    """What optimiser, average and place in the data depend on."""
    optimizer = {
        "name": config["optimizer"]["name"],
        "ema_images": "above 0" if config["optimizer"]["ema_images"] else 0,
    }
    return {
        "data.train": data[:12],
        "sampling": config["sampling"],
        "training": {"seed": config["training"]["seed"]},
        "optimizer": optimizer,
    }


def refuse_differences(
    uri: str, verdict: str, theirs: dict[str, Any], mine: dict[str, Any], *, remedy: str
) -> None:
    theirs, mine = run_folder.flatten(theirs), run_folder.flatten(mine)
    differing = sorted(
        name for name in theirs.keys() | mine.keys() if theirs.get(name) != mine.get(name)
    )
    if differing:
        shown = "; ".join(
            f"{name} is {theirs.get(name)!r} there, {mine.get(name)!r} here"
            for name in differing[:3]
        )
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UsageError(f"from_checkpoint {uri}: {verdict} ({shown}{more}); {remedy}")


def publish(uri: str, folder: str, *, name: str, root: str) -> str:
    """The URI at which every node can read the checkpoint: its own in S3 and below the storage
    `root`, else a copy's in `<folder>/start/`.
    """
    uri = uris.absolute(uri)
    if uri.startswith((uris.S3, uris.absolute(root) + "/")):
        return uri
    copy = uris.join(folder, "start", f"{name[:12]}-{os.path.basename(uri)}")
    if not files.exists(uris.join(copy, run_folder.STATE_FILE)):
        files.upload_folder(uri, copy, last=run_folder.STATE_FILE)
    return copy
