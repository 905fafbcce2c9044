"""A training that starts from a weight file: where the file may be, the refusals of the preflight,
and the weights of every rank.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import UsageError
from cluster.runs import evaluations, run_folder, weight_file
from cluster.runs.config import TrainConfig
from cluster.shards.format import Category
from cluster.storage import files
from cluster.storage.uris import join
from cluster.training import launch, preflight
from detector.model import RetinaNet

URL = "https://weights.example.org/models/resnet50-0676ba61.pth"
NETWORK = {"classes": 2, "backbone": "resnet18", "width": 64}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch hub's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


def own_file(path: Path, **changed: Any) -> Path:
    """A file of ours, of a small network."""
    torch.manual_seed(1)
    network = RetinaNet(**NETWORK | changed)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, str(path))
    return path


def test_a_local_file_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    with weight_file.local_file("model.safetensors") as path:
        assert path == str(tmp_path / "model.safetensors")


def test_an_object_of_a_bucket_is_copied_and_the_copy_is_removed(bucket: str) -> None:
    uri = f"{bucket}/zoo/model_final.pkl"
    files.write_bytes(uri, b"weights")
    with weight_file.local_file(uri) as path:
        assert path.endswith("/model_final.pkl") and Path(path).read_bytes() == b"weights"
    assert not os.path.exists(path)
    with pytest.raises(UsageError, match="zoo: is a folder"):
        weight_file.check(f"{bucket}/zoo", None)
    with pytest.raises(UsageError, match="none.pkl"):
        weight_file.check(f"{bucket}/zoo/none.pkl", None)


def test_a_url_is_downloaded_once(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, path: str, *, sha256: str) -> None:
        asked.append((url, sha256))
        os.makedirs(os.path.dirname(path))
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(weight_file, "download", download)
    for _ in range(2):
        with weight_file.local_file(URL) as path:
            assert (
                path == str(hub / "resnet50-0676ba61.pth") and Path(path).read_bytes() == b"weights"
            )
    # The digest in the name is compared with the content.
    assert asked == [(URL, "0676ba61")]
    # A name without a digest can stand for different files.
    paths = {
        weight_file.cache_path(f"https://weights.example.org/{number}/model_final.pkl")
        for number in (1, 2)
    }
    assert len(paths) == 2 and {os.path.basename(path) for path in paths} == {"model_final.pkl"}


def test_a_damaged_file_in_the_cache_is_deleted(hub: Path) -> None:
    hub.mkdir(parents=True)
    path = hub / "resnet50-0676ba61.pth"
    path.write_bytes(b"half of it")
    with pytest.raises(UsageError, match=f"pretrained {URL}: cannot be read"):
        weight_file.check(URL, NETWORK)
    assert not path.exists()
    # One that only does not fit stays.
    torch.save({"encoder.weight": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="are not known"):
        weight_file.check(URL, NETWORK)
    assert path.exists()


def test_a_url_that_fails_is_one_plain_line(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, path: str, *, sha256: str) -> None:
        raise urllib.error.HTTPError(URL, 404, "Not Found", Message(), None)

    monkeypatch.setattr(weight_file, "download", refuse)
    with pytest.raises(UsageError, match="0676ba61.pth: cannot be downloaded .*404.*give its path"):
        weight_file.check(URL, None)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:sesame@host/a.pth",
        "https://host/a.pth?signature=sesame",
        "https://host/",
        "http://host/a.pth",
    ],
)
def test_the_message_about_a_refused_url_shows_no_secret(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        weight_file.check(url, None)
    assert "sesame" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none.pth: there is no such file"):
        weight_file.check(str(tmp_path / "none.pth"), NETWORK)
    with pytest.raises(UsageError, match="is a folder"):
        weight_file.check(str(tmp_path), NETWORK)


def test_a_file_that_does_not_fit_is_refused_in_the_preflight(tmp_path: Path, bucket: str) -> None:
    path = own_file(tmp_path / "model.safetensors")
    assert weight_file.check(str(path), NETWORK) == hashlib.sha256(path.read_bytes()).hexdigest()
    # Other classes are no misfit.
    weight_file.check(str(path), NETWORK | {"classes": 7})
    with pytest.raises(
        UsageError, match="model.safetensors: .* another architecture .*set model.backbone resnet18"
    ):
        weight_file.check(str(path), NETWORK | {"backbone": "resnet34"})
    damaged = f"{bucket}/damaged.safetensors"
    files.write_bytes(damaged, path.read_bytes()[:-1000])
    with pytest.raises(UsageError, match=f"^pretrained {damaged}: cannot be read"):
        weight_file.check(damaged, NETWORK)


def test_the_published_file_is_readable_on_every_node(tmp_path: Path, bucket: str) -> None:
    path, run = tmp_path / "elsewhere/model.safetensors", f"{bucket}/store/runs/cells"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    digest = weight_file.check(str(path), None)
    copy = weight_file.publish(str(path), run, digest=digest, root=f"{bucket}/store")
    assert (
        copy == f"{run}/pretrained/{digest[:12]}-model.safetensors"
        and files.read_bytes(copy) == b"weights"
    )
    # It is a part of the run from then on.
    path.unlink()
    assert weight_file.publish(str(path), run, digest=digest, root=f"{bucket}/store") == copy
    # What nodes see already stays where it is: S3, and whatever is under the storage root.
    assert (
        weight_file.publish(copy, str(tmp_path / "run"), digest=digest, root=str(tmp_path)) == copy
    )
    under = str(tmp_path / "store/sweeps/a/pretrained/w.pth")
    assert (
        weight_file.publish(
            under, str(tmp_path / "run"), digest=digest, root=str(tmp_path / "store")
        )
        == under
    )


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """Makes the configuration of a run of the small network, with shard sets that need not be
    there.
    """
    categories = (Category(0, 1, "cell"), Category(1, 2, "platelet"))
    shards = SimpleNamespace(
        uri="/data",
        num_rows=1,
        categories=categories,
        class_names=["cell", "platelet"],
        source_names=(),
        digest="d",
    )
    monkeypatch.setattr(preflight, "open_shard_set", lambda uri: shards)
    monkeypatch.setattr(preflight, "_check_objects", lambda *_: ())
    places = {"storage": str(tmp_path / "store"), "data": {"train": "t", "val": "v"}}
    model = {"backbone": "resnet18", "width": 64}
    return lambda **changes: TrainConfig.model_validate(
        {"name": "cells", **places, "model": model, **changes}
    )


def test_the_content_of_the_weight_file_identifies_a_run(
    tmp_path: Path, configure: Callable[..., TrainConfig]
) -> None:
    path, moved = own_file(tmp_path / "model.safetensors"), tmp_path / "moved.safetensors"
    first = preflight.check(configure(pretrained=str(path)))
    assert (
        first.identity["pretrained"] == hashlib.sha256(path.read_bytes()).hexdigest()
        and not first.begun
    )
    assert preflight.check(configure()).identity["pretrained"] is None
    moved.write_bytes(path.read_bytes())
    assert preflight.check(configure(pretrained=str(moved))).identity == first.identity
    own_file(path, prior=0.5)
    assert preflight.check(configure(pretrained=str(path))).identity != first.identity


def test_a_mismatch_is_refused_before_a_run_begins(
    tmp_path: Path, configure: Callable[..., TrainConfig]
) -> None:
    config = configure(
        pretrained=str(own_file(tmp_path / "model.safetensors", backbone="resnet34"))
    )
    with pytest.raises(UsageError, match="model.backbone is resnet18 here, resnet34 in the file"):
        preflight.check(config)
    # The name stays free: nothing was written under it.
    assert run_folder.read_claim(config.run_uri) is None


def test_a_begun_run_no_longer_needs_its_file_but_refuses_another_one(
    tmp_path: Path, configure: Callable[..., TrainConfig]
) -> None:
    path = tmp_path / "model.safetensors"
    config = configure(pretrained=str(path))
    with pytest.raises(UsageError, match="model.safetensors: there is no such file"):
        preflight.check(config)
    own_file(path)
    before = preflight.check(config)
    files.write_json(join(run_folder.checkpoint_uri(config.run_uri, 10), run_folder.STATE_FILE), {})
    path.unlink()
    assert preflight.check(config) == dataclasses.replace(before, begun=True, warnings=())
    own_file(path, prior=0.5)
    with pytest.raises(UsageError, match="another configuration .pretrained was "):
        preflight.check(config)
    with pytest.raises(UsageError, match="pretrained was"):
        preflight.check(configure())
    with pytest.raises(UsageError, match="none.pth: there is no such file"):
        preflight.check(configure(pretrained=str(tmp_path / "none.pth")))


def test_a_checked_configuration_is_not_checked_again(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    checked = preflight.check(config)
    there = run_folder.checkpoint_uri(config.run_uri, 8)
    best = evaluations.Evaluation(there, 8, 1, metrics={"AP": 0.5})
    run_folder.write_finished(config.run_uri, run_folder.Finished(8, 1))
    run_folder.write(config.run_uri, run_folder.BEST, best.to_json())
    monkeypatch.setattr(launch, "check", lambda config: pytest.fail("checked twice"))
    assert launch.launch(config, checked=checked) == best
