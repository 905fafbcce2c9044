"""`run FOLDER`: the configuration of a run from annotated pictures alone. What is recognised and
what is chosen is said, a line each, and written as a YAML file that repeats the run.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cluster.errors import DataError, UsageError, on_one_line, redacted
from cluster.runs.names import MOST_OF_A_WORKFLOW
from pipelines import entry_flags
from pipelines.command_line import parse, read_yaml
from pipelines.options import ENVIRONMENT_PREFIX, all_fields
from pipelines.run_config import RunConfig

if TYPE_CHECKING:
    from cluster.formats.layout import Set
    from cluster.training.starting_point import Chosen, Machine, Material

WHERE = ("annotations", "images", "format", "sources")
"""Fields of a section of data that a folder stands for."""
OF_THIS_CALL = {"plan", "from_stage", "until_stage", "only_stage"}
"""Options that say what is done now, and change no setting."""


def read(argv: Sequence[str]) -> RunConfig:
    """The configuration that was typed: with a folder, zip or file of annotated pictures as its one
    word without a flag, or without. `UsageError` as `parse`, and where the folder cannot be used.
    """
    fields = all_fields(RunConfig)
    folder, flags = entry_flags.positional(entry_flags.as_lists(argv, fields))
    if folder is None:
        if "minutes" in _given(flags):
            raise UsageError("--minutes: needs the folder of the pictures: retinaray run FOLDER")
        return parse(RunConfig, flags)
    given = _given(flags)
    if taken := [name for name in given if _is_where(name, "train")]:
        raise UsageError(f"--{taken[0]}: is given beside the folder {folder}; give one of them")
    return _from_folder(folder, flags, given)


_UNKNOWN = {"train": {"annotations": "train"}, "val": {"annotations": "val"}}
"""Sections that are complete: a wrong flag is found before the pictures are looked at."""


def _from_folder(folder: str, flags: Sequence[str], given: Collection[str]) -> RunConfig:
    from cluster.storage.uris import refuse_job_folder
    from cluster.training.starting_point import choose_start, fields_of

    typed = parse(RunConfig, flags, under={"name": name_of(folder), "data": _UNKNOWN})
    refuse_job_folder("--storage", typed.storage)
    file, head = _file_of(typed), _head(folder, flags)
    if file.is_file() and file.read_text("utf-8").startswith(head):
        # Also on another machine, and with a step that takes another time: it is the same training.
        print(
            f"settings    those of {file}, which this command wrote before (delete it to choose"
            " again)"
        )
        return parse(RunConfig, flags, under=read_yaml(str(file)))
    under = {"name": typed.name, "data": _data(folder, given)}
    settings = parse(RunConfig, flags, under=under)
    if settings.data.val.split == "val":
        print(
            f"val         {settings.data.val.val_share:.0%} of these pictures, by a hash of their"
            " names: none says val, valid, validation or dev (--data.val.annotations names"
            " another set)"
        )
    material, machine = _material(settings), _machine(settings)
    decisions = choose_start(material, machine, settings, given)
    config = parse(RunConfig, flags, under={**under, **fields_of(decisions)})
    if config.minutes is not None and "training.epochs" not in given:
        decisions = (*decisions[:-1], _within_minutes(config, material, machine))
        config = parse(RunConfig, flags, under={**under, **fields_of(decisions)})
    print("\n".join(decision.line() for decision in decisions))
    if not config.plan:
        _write(head + _text(config), file)
        print(f"repeat it   retinaray run --config {file}")
    return config


def name_of(folder: str) -> str:
    """The name of a run for a folder, zip, bucket or file."""
    from cluster.storage import uris

    last = uris.absolute(folder).rsplit("/", 1)[-1]
    stem = re.sub(r"\.(zip|json|parquet|csv|xml|odgt)$", "", last, flags=re.IGNORECASE)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:MOST_OF_A_WORKFLOW].strip("._-")
    return plain or "run"


def _given(flags: Sequence[str]) -> set[str]:
    """The names of the options that were set by flag, variable or file."""
    fields = all_fields(RunConfig)
    names = {flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")}
    variables = {ENVIRONMENT_PREFIX + name.replace(".", "__").upper(): name for name in fields}
    names |= {variables[one.upper()] for one in os.environ if one.upper() in variables}
    for number, flag in enumerate(flags):
        word, _, value = flag.partition("=")
        if word == "--config":
            names |= set(_names_in(read_yaml(value or "".join(flags[number + 1 : number + 2]))))
    return names


def _names_in(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = list[str]()
    for key, value in content.items():
        inside = _names_in(value, f"{prefix}{key}.") if isinstance(value, dict) else ()
        names += [f"{prefix}{key}", *inside]
    return names


def _is_where(name: str, split: str) -> bool:
    return name in {f"data.{split}.{field}" for field in WHERE}


def _data(folder: str, given: Collection[str]) -> dict[str, Any]:
    """The sections data.train and data.val, as far as the user has not given val."""
    from cluster.formats.splits import find_splits

    found = find_splits(folder)
    print("\n".join(found.lines))
    train, val = _section(found.train), _section(found.val) if found.val else None
    if any(_is_where(name, "val") for name in given):
        return {"train": train}
    if val is None:
        return {"train": {**train, "split": "train"}, "val": {**train, "split": "val"}}
    return {"train": train, "val": val}


def _section(sets: Sequence[Set]) -> dict[str, Any]:
    alone = [
        {"annotations": one.annotations, "images": one.images, "format": one.format} for one in sets
    ]
    if len(alone) == 1:
        return alone[0]
    return {"sources": [{"name": str(number), **one} for number, one in enumerate(alone, 1)]}


def _material(settings: RunConfig) -> Material:
    from cluster.prepare.sample import sample_annotations
    from cluster.training.starting_point import Material
    from pipelines.data_section import plan_of

    plan, val = plan_of(settings.data.train), plan_of(settings.data.val)
    images, classes = sum(map(len, plan.cuts)), len(plan.source.categories)
    print(
        f"pictures    {images} for training, {sum(map(len, val.cuts))} for evaluation;"
        f" {len(plan.source.images.labels_N)} boxes of {classes} classes to train on"
    )
    if not images:
        raise DataError(
            f"none of the {plan.source.listed} pictures for training can be used; `retinaray"
            " prepare --check true` says why"
        )
    return Material(images, classes, sample_annotations(plan))


def _machine(settings: RunConfig) -> Machine:
    """This machine, or the cluster that the run will use, which is connected here."""
    import torch

    from cluster.compute.resources import node_resources, total, usable_cpus
    from cluster.compute.session import connect, would_start
    from cluster.training.starting_point import LARGE_GPU_GIB, Machine

    ray = settings.ray
    if would_start(ray.address):
        gpus, gib = torch.cuda.device_count(), 0.0
        if gpus:
            gib = torch.cuda.get_device_properties(0).total_memory / (1 << 30)
        machine = Machine(ray.num_cpus or usable_cpus(), gpus, gib)
    else:
        connect(ray.address, num_cpus=ray.num_cpus, logs=ray.logs)
        there = total(node_resources())
        machine = Machine(int(there["CPU"]), int(there["GPU"]), LARGE_GPU_GIB)
    print(f"machine     {machine.cores} CPUs and {machine.gpus} GPUs")
    return machine


def _within_minutes(config: RunConfig, material: Material, machine: Machine) -> Chosen:
    """As many epochs as fit."""
    from cluster.training.starting_point import of_epochs
    from cluster.training.step_time import epochs_within, seconds_per_image

    minutes = config.minutes or 0.0
    each = seconds_per_image(config, classes=material.classes, gpus=machine.gpus)
    epochs = epochs_within(minutes, images=material.images, seconds_each=each)
    one = each * material.images / 60
    reason = (
        f"--minutes {minutes:g}; by a measured step {each:.2g} s for an image with all beside it,"
        f" {one:.2g} minutes for an epoch"
    )
    if one > minutes:
        reason += ", which is longer: a smaller canvas or network takes less"
    return of_epochs(epochs, reason)


def _file_of(config: RunConfig) -> Path:
    """Beside the results; in the working directory where these are in a bucket."""
    from cluster.storage import uris

    folder = "." if uris.is_remote(config.storage) else config.storage.removeprefix("file://")
    return Path(folder).expanduser() / f"{config.name}.yaml"


def _head(folder: str, flags: Sequence[str]) -> str:
    """The first line of the file: the command that it stands for, wherever it is typed."""
    from cluster.storage import uris

    words, waiting = [uris.absolute(folder)], list(flags)
    while waiting:
        flag = waiting.pop(0)
        value = [waiting.pop(0)] if waiting and not waiting[0].startswith("--") else []
        if flag[2:].partition("=")[0] not in OF_THIS_CALL:
            words += [flag, *value]
    return f"# {on_one_line(redacted(f'retinaray run {shlex.join(words)}'))}\n"


def _text(config: RunConfig) -> str:
    fields = config.model_dump(
        mode="json", exclude_defaults=True, exclude={"minutes", *OF_THIS_CALL}
    )
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100)


def _write(text: str, file: Path) -> None:
    """What another command wrote, or a user, is kept under another name."""
    if file.is_file():
        kept = file.with_suffix(".before.yaml")
        file.replace(kept)
        print(f"kept        {kept}: what was in {file}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
