"""What the evaluations say of a run's checkpoints: which still wait, what the others scored, which
is the best, whether training goes on.

waiting/images-000000004100.json   an evaluation that was asked for: {"checkpoint", "images_seen",
"epoch"}; deleted when it is over evaluations.json                   those that are over, by images
seen: the same with "weights" and `numbers`, or with "error" best.json                          the
one with the highest AP, the newest of equals

All of it lies in the run's folder, so that it outlives the driver and the workers. One process at a
time writes the last two: the driver's evaluator or, where the workers evaluate between epochs, rank
0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cluster.runs import run_folder
from cluster.storage import files
from cluster.storage.uris import join

WAITING, EVALUATIONS = "waiting", "evaluations.json"
Verdict = dict[str, Any]


def request(run: str, checkpoint: str, images_seen: int, epoch: int) -> None:
    """Ask for the evaluation of a checkpoint that is complete in storage."""
    files.write_json(
        place(run, checkpoint),
        {"checkpoint": checkpoint, "images_seen": images_seen, "epoch": epoch},
    )


def place(run: str, checkpoint: str) -> str:
    return join(run, WAITING, os.path.basename(checkpoint) + ".json")


def waiting(run: str) -> list[str]:
    """URIs of the checkpoints whose evaluation was asked for and is not over, by images seen; they
    must not be deleted.
    """
    names = [os.path.basename(uri) for uri, _ in files.list_files(join(run, WAITING), [".json"])]
    return [join(run, run_folder.CHECKPOINTS, name.removesuffix(".json")) for name in sorted(names)]


def asked(run: str, checkpoint: str) -> Verdict:
    """What `request` was told of a checkpoint that waits."""
    return files.read_json(place(run, checkpoint))


def evaluations(run: str) -> list[Verdict]:
    """The evaluations that are over, by images seen."""
    return (run_folder.read(run, EVALUATIONS) or {"evaluations": []})["evaluations"]


def settle(run: str, verdict: Verdict) -> None:
    """An evaluation is over: keep it, in the place of an earlier one at the same images seen, and
    the best of all.
    """
    over = including(evaluations(run), verdict)
    run_folder.write(run, EVALUATIONS, {"evaluations": over})
    best = best_of(over)
    if best is not None:
        run_folder.write(run, run_folder.BEST, best)
    files.delete_file(place(run, verdict["checkpoint"]))


def numbers(table: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation keeps of `CocoTable.as_dict`: the numbers over all classes, and in
    `per_class` the AP of each.
    """
    summary = {name: value for name, value in table.items() if isinstance(value, float)}
    return {**summary, "per_class": {name: row["AP"] for name, row in table["per_class"].items()}}


def including(over: Sequence[Verdict], verdict: Verdict) -> list[Verdict]:
    others = [one for one in over if one["images_seen"] != verdict["images_seen"]]
    return sorted([*others, verdict], key=lambda one: one["images_seen"])


def known(over: Sequence[Verdict], images_seen: int) -> Verdict | None:
    """The evaluation at these images seen, where it came to numbers."""
    return next(
        (one for one in over if one["images_seen"] == images_seen and "error" not in one), None
    )


def best_of(over: Sequence[Verdict]) -> Verdict | None:
    """What best.json says, of evaluations by images seen."""
    scored = [one for one in over if "error" not in one]
    if not scored:
        return None
    best = max(reversed(scored), key=lambda one: one["AP"])
    return {
        name: best[name]
        for name in ("checkpoint", "weights", "images_seen", "epoch", "AP", "AP50", "AP75")
    }


def reason_to_stop(over: Sequence[Verdict], *, patience: int, min_improvement: float) -> str | None:
    """Why training should stop: the last `patience` evaluations did not raise AP by more than
    `min_improvement`. 0 is patience without end.

    What counts is the rise above the last evaluation that did, so a slow but steady gain goes on.
    Evaluations without numbers do not count.
    """
    good: Verdict | None = None
    without = 0
    for one in (one for one in over if "error" not in one):
        if good is None or one["AP"] > good["AP"] + min_improvement:
            good, without = one, 0
        else:
            without += 1
    if good is None or not patience or without < patience:
        return None
    by = f" by more than {min_improvement:g}" if min_improvement else ""
    return (
        f"AP has not risen{by} in {without} evaluations, from {good['AP']:.4f} after epoch"
        f" {good['epoch']}"
    )
