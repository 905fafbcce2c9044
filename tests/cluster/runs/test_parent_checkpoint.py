"""A run that starts from another run's checkpoint: refusals of the preflight, and the identity of
the run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.errors import DataError, PlainError, UsageError
from cluster.runs import parent_checkpoint, run_folder
from cluster.runs.config import TrainConfig
from cluster.runs.package import package_of
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.uris import join
from cluster.training import preflight
from detector.checkpoint import Snapshot, write_checkpoint

CATEGORIES = (Category(0, 1, "cell"), Category(1, 2, "platelet"))


def shard_set(*categories: Category, digest: str = "d" * 64) -> SimpleNamespace:
    return SimpleNamespace(
        uri="/data",
        num_rows=8,
        categories=categories,
        class_names=[c.name for c in categories],
        source_names=(),
        digest=digest,
    )


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """Makes the configuration of a run, whose shard sets need not be there."""
    monkeypatch.setattr(preflight, "open_shard_set", lambda uri: shard_set(*CATEGORIES))
    monkeypatch.setattr(preflight, "_check_objects", lambda *_: ())
    places = {"storage": str(tmp_path / "store"), "data": {"train": "t", "val": "v"}}
    return lambda **changes: TrainConfig.model_validate(
        {"name": "second", **places, "model": {"backbone": "resnet18", "width": 64}, **changes}
    )


@pytest.fixture
def parent(tmp_path: Path, configure: Callable[..., TrainConfig]) -> str:
    """A checkpoint after 6 of 8 images of the second epoch. What is in its files does not matter
    here.
    """
    config = configure(name="first")
    state = {
        "images_seen": 14,
        "epoch": 1,
        "left": [[6, 8]],
        "data_digest": "d" * 64,
        "config": config.model_dump(mode="json"),
    }
    state["package"] = package_of(config, shard_set(*CATEGORIES)).to_json()
    uri = run_folder.checkpoint_uri(str(tmp_path / "store/runs/first"), 14)
    write_checkpoint(uri, Snapshot({"x": torch.ones(3)}, None, {}, None, state))
    return uri


def test_the_content_of_the_checkpoint_identifies_a_run(
    parent: str, tmp_path: Path, configure: Callable[..., TrainConfig]
) -> None:
    first = preflight.check(configure(from_checkpoint=parent))
    assert (
        first.identity["from_checkpoint"] == parent_checkpoint.digest(parent)
        and first.identity["pretrained"] is None
    )
    moved = str(tmp_path / "moved")
    os.rename(parent, moved)
    assert preflight.check(configure(from_checkpoint=moved)).identity == first.identity
    assert (
        preflight.check(configure(from_checkpoint=moved, from_state="full")).identity
        != first.identity
    )
    assert preflight.check(configure()).identity["from_checkpoint"] is None


def test_a_begun_run_no_longer_needs_its_checkpoint(
    parent: str, tmp_path: Path, configure: Callable[..., TrainConfig]
) -> None:
    config = configure(from_checkpoint=parent)
    before = preflight.check(config)
    files.write_json(join(run_folder.checkpoint_uri(config.run_uri, 10), run_folder.STATE_FILE), {})
    os.rename(parent, tmp_path / "moved")
    assert preflight.check(config) == dataclasses.replace(before, begun=True, warnings=())
    with pytest.raises(UsageError, match="from_checkpoint was '.*', is None"):
        preflight.check(configure())


def test_a_run_begun_with_a_relative_path_continues_with_an_absolute_one(
    parent: str,
    tmp_path: Path,
    configure: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Version 0.1 stored paths as they were typed.
    monkeypatch.chdir(tmp_path)
    typed = configure(from_checkpoint=os.path.relpath(parent, tmp_path))
    before = preflight.check(typed)
    files.write_json(join(run_folder.checkpoint_uri(typed.run_uri, 10), run_folder.STATE_FILE), {})
    os.rename(parent, tmp_path / "moved")
    assert preflight.check(typed.with_absolute_uris()) == dataclasses.replace(
        before, begun=True, warnings=()
    )
    with pytest.raises(UsageError, match="there is no such folder"):
        preflight.check(configure(from_checkpoint=str(tmp_path / "another")))


def test_the_published_checkpoint_is_readable_on_every_node(
    parent: str, tmp_path: Path, bucket: str
) -> None:
    root, run, name = (
        f"{bucket}/store",
        f"{bucket}/store/runs/second",
        parent_checkpoint.digest(parent),
    )
    copy = parent_checkpoint.publish(parent, run, name=name, root=root)
    assert (
        copy == f"{run}/start/{name[:12]}-images-000000000014"
        and parent_checkpoint.digest(copy) == name
    )
    assert parent_checkpoint.publish(copy, str(tmp_path), name=name, root=str(tmp_path)) == copy
    assert parent_checkpoint.publish(parent, run, name=name, root=str(tmp_path / "store")) == parent


def test_a_checkpoint_in_a_bucket_is_verified_too(
    parent: str, bucket: str, configure: Callable[..., TrainConfig]
) -> None:
    uri = f"{bucket}/first/checkpoints/images-000000000014"
    files.upload_folder(parent, uri)
    assert parent_checkpoint.check(
        configure(from_checkpoint=uri), shard_set(*CATEGORIES)
    ) == parent_checkpoint.digest(parent)
    files.write_bytes(f"{uri}/optimizer.pt", b"torn")
    with pytest.raises(
        DataError, match=r"images-000000000014: is damaged \(optimizer.pt: has 4 bytes of"
    ):
        parent_checkpoint.check(configure(from_checkpoint=uri), shard_set(*CATEGORIES))


def full(**changes: Any) -> dict[str, Any]:
    return {"from_state": "full", **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": {"backbone": "resnet34", "width": 64}},
            "has another model (backbone is 'resnet18' there, 'resnet34' here)",
        ),
        (
            {"model": {"backbone": "resnet18", "width": 64, "anchors": {"scales": [1.0]}}},
            "has another model (scales is",
        ),
        (
            full(model={"backbone": "resnet18", "width": 64, "frozen_stages": 1}),
            "has another model (frozen_stages is 0 there, 1 here)",
        ),
        (
            full(training={"seed": 1}),
            (
                "its state cannot be continued (training.seed is 0 there, 1 here); take the same"
                " settings, or --from_state weights"
            ),
        ),
        (
            full(sampling={"repeat_threshold": 0.1}),
            "(sampling.repeat_threshold is 0.0 there, 0.1 here)",
        ),
        (full(optimizer={"name": "adamw"}), "(optimizer.name is 'sgd' there, 'adamw' here)"),
        (
            full(training={"epochs": 1}),
            "has seen 14 images, all that training.epochs 1 asks for; raise it",
        ),
    ],
)
def test_a_mismatch_names_the_settings(
    parent: str, configure: Callable[..., TrainConfig], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as raised:
        preflight.check(configure(from_checkpoint=parent, **changes))
    assert str(raised.value).startswith(f"from_checkpoint {parent}: ") and said in str(raised.value)
    # The name stays free.
    assert run_folder.read_claim(configure().run_uri) is None


def test_settings_that_may_differ(parent: str, configure: Callable[..., TrainConfig]) -> None:
    preflight.check(
        configure(from_checkpoint=parent, optimizer={"name": "adamw"}, training={"seed": 1})
    )
    preflight.check(
        configure(
            from_checkpoint=parent, model={"backbone": "resnet18", "width": 64, "frozen_stages": 1}
        )
    )
    preflight.check(
        configure(
            from_checkpoint=parent,
            from_state="full",
            optimizer={"learning_rate": 0.5},
            training={"epochs": 2, "batch_size": 8},
        )
    )


def test_other_classes_are_refused_and_other_data_for_the_full_state(
    parent: str, configure: Callable[..., TrainConfig]
) -> None:
    config = configure(from_checkpoint=parent)
    parent_checkpoint.check(config, shard_set(*CATEGORIES, digest="e" * 64))
    with pytest.raises(
        UsageError,
        match=(
            "its 2 classes .'cell', 'platelet'. are not the 1 of data.train .'cell'.; --pretrained"
            " .*model.safetensors"
        ),
    ):
        parent_checkpoint.check(config, shard_set(CATEGORIES[0]))
    with pytest.raises(
        UsageError,
        match=(
            "its state cannot be continued .data.train is 'dddddddddddd' there, 'eeeeeeeeeeee' here"
        ),
    ):
        parent_checkpoint.check(
            configure(from_checkpoint=parent, from_state="full"),
            shard_set(*CATEGORIES, digest="e" * 64),
        )


def test_a_path_that_is_not_a_checkpoint_is_refused(
    parent: str, tmp_path: Path, bucket: str, configure: Callable[..., TrainConfig]
) -> None:
    (tmp_path / "empty").mkdir()
    Path(parent, "model.safetensors").write_bytes(b"torn")
    folder, name = os.path.split(parent)
    run = os.path.dirname(folder)
    not_one = "is not a checkpoint, it has no state.json"
    there = f"there are {name} in {folder}"
    for uri, said in (
        (run, f"{not_one}; {there}"),
        (folder, f"{not_one}; {there}"),
        (f"{parent}0", f"there is no such folder; did you mean {name}? {there}"),
        (f"{tmp_path}/empty", "is not a checkpoint, it has no state.json; give <storage>"),
        (f"{tmp_path}/nowhere", "there is no such folder; give <storage>"),
        (f"{bucket}/nowhere", "there is no such folder; give <storage>"),
        (parent, "is damaged (model.safetensors: has 4 bytes of "),
    ):
        with pytest.raises(PlainError) as raised:
            preflight.check(configure(from_checkpoint=uri))
        assert said in str(raised.value)


def test_a_run_starts_from_one_source(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ValueError, match="a run starts from one of them"):
        configure(from_checkpoint="a", pretrained="b")
    with pytest.raises(ValueError, match="from_state full: does nothing without from_checkpoint"):
        configure(from_state="full")
