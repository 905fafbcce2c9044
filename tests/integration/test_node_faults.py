"""Nodes that leave and return, on a Ray cluster of several nodes on this machine."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.runs import run_folder
from cluster.shards.index import open_shard_set
from cluster.storage import files
from tests.support.ray_nodes import Nodes
from tests.support.trainings import ALONE, ENDLESS, Typed, environment, train_flags

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    with Nodes(environment(RAY_AUTH_MODE="disabled")) as cluster:
        yield cluster


@pytest.fixture
def nodes(head: Nodes) -> Iterator[Nodes]:
    """A head without CPUs and no other nodes yet."""
    yield head
    head.remove_all()


def test_training_continues_when_a_node_leaves_and_returns(
    small_sets: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    """1..2 workers on two nodes: on with one worker and the same global batch in two parts, and
    back to two from a checkpoint taken for that.
    """
    for name in ("first", "second"):
        nodes.add(name, cpus=1)
    training = {**ENDLESS, "min_workers": 1, "checkpoint_images": 16}
    flags = train_flags(small_sets, tmp_path, "elastic", tmp_path, **training)
    patch = "from cluster.training import launch; launch.RESIZE_LOOK_S = 5.0"
    with Typed([*flags, "--ray.address", nodes.address], patch=patch) as driver:
        driver.until("training on 2 workers")
        driver.until("img/s", times=6)
        nodes.kill("second")
        driver.until("training on 1 workers")
        assert "4 images a step in 2 parts" in driver.text
        driver.until("img/s", times=4)
        nodes.add("second", cpus=1)
        driver.until("1 workers become 2, from the checkpoint just taken")
        driver.until("training on 2 workers")
        driver.until("img/s", times=6)
        driver.interrupt()
    run = f"{tmp_path}/runs/elastic"
    states = [files.read_json(f"{uri}/state.json") for uri in run_folder.checkpoints(run)]
    assert [ranks for ranks, _ in itertools.groupby(state["ranks"] for state in states)] == [
        2,
        1,
        2,
    ]
    for state in states:
        # 24 images an epoch; what is left of it are exactly those that were not seen.
        assert state["images_seen"] == 24 * (state["epoch"] + 1) - sum(
            stop - start for start, stop in state["left"]
        )
    # Every start goes on at a checkpoint's images seen.
    starts = [int(found) for found in re.findall(r"; (\d+) of 12000 images seen", driver.text)]
    assert len(starts) == 3 and set(starts[1:]) <= {state["images_seen"] for state in states}


def test_prepare_finishes_when_one_of_two_nodes_leaves(
    nodes: Nodes, ray_cluster: str, tmp_path: Path
) -> None:
    """The set is, to the byte, what one machine makes of the same source."""
    from pipelines.prepare import PrepareConfig, main

    generator = np.random.default_rng(0)
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": 640, "width": 960}
        for number in range(1, 61)
    ]
    boxes = [
        {
            "id": image["id"],
            "image_id": image["id"],
            "category_id": 1,
            "bbox": [5, 6, 70, 80],
            "area": 5600,
            "iscrowd": 0,
        }
        for image in images
    ]
    files.write_json(
        f"{tmp_path}/coco.json",
        {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "noise"}]},
    )
    (tmp_path / "images").mkdir()
    for image in images:
        # Of about 0.6 MB: a shard of 1 MiB holds one or two.
        Image.fromarray(generator.integers(0, 256, (640, 960, 3), np.uint8)).save(
            f"{tmp_path}/images/{image['file_name']}"
        )
    source = {"annotations": f"{tmp_path}/coco.json", "images": f"{tmp_path}/images"}
    typed = [f"--{name}={value}" for name, value in source.items()]
    for name in ("first", "second"):
        nodes.add(name, cpus=1)
    typed += ["--shard_size_mib=1", f"--output={tmp_path}/two", f"--ray.address={nodes.address}"]
    with Typed(typed, verb="prepare") as two:
        two.until(" shards")
        nodes.kill("second")
        assert two.ends() == 0, two.text
    main(PrepareConfig(**source, output=f"{tmp_path}/one", shard_size_mib=1))
    sets = [open_shard_set(f"{tmp_path}/{name}") for name in ("one", "two")]
    assert (
        len(sets[0].shards) > 20
        and sets[0].counts.images == 60
        and sets[0].digest == sets[1].digest
    )
    names = sorted(os.listdir(tmp_path / "one"))
    assert names == sorted(os.listdir(tmp_path / "two"))
    assert all(
        (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        for name in names
        if name != "report.html"
    )


def test_training_ends_with_one_line_when_no_node_comes(
    small_sets: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add("only", cpus=2)
    training = {**ALONE, **ENDLESS, "wait_minutes": 0.5}
    flags = train_flags(small_sets, tmp_path, "waiting", tmp_path, **training)
    with Typed([*flags, "--ray.address", nodes.address]) as driver:
        driver.until("images       12/")
        nodes.kill("only")
        assert driver.ends() == 1, driver.text
    assert "waiting for 1 workers of 0.5 CPUs since" in driver.text
    ended = (
        "error: training waiting stopped: no room for 1 workers of 0.5 CPUs in 0.5 minutes"
        " (training.wait_minutes)"
    )
    assert ended in driver.text


def test_preflight_asks_every_node_and_training_is_refused_where_one_is_unfit(
    small_sets: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    """The unfit one has a driver of its GPUs that is too old, by a program that says so."""
    nodes.add("first", cpus=1)
    nodes.add("second", cpus=1)
    flags = ["--storage", str(tmp_path / "store"), "--ray.address", nodes.address]
    flags += ["--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with Typed(flags, verb="preflight", RAY_AUTH_MODE="disabled") as good:
        assert good.ends() == 0, good.text
    assert re.search(r"ok    storage   3 nodes, ", good.text)
    assert re.search(r"ok    packages  3 nodes, \d+ packages as in the lock", good.text)
    assert re.search(r"warn  token     \S+ \(\w{6}\) and 2 more: asks for no token", good.text)
    assert not (tmp_path / "store" / ".preflight").exists()

    unfit = tmp_path / "bin" / "nvidia-smi"
    unfit.parent.mkdir()
    unfit.write_text("#!/bin/sh\necho 'NVIDIA L4, 470.57.02'\n")
    unfit.chmod(0o755)
    nodes.start(
        "old",
        *(f"--address={nodes.address}", "--num-cpus=1", "--num-gpus=1"),
        env={**nodes.env, "PATH": f"{unfit.parent}:{os.environ['PATH']}"},
    )
    training = {**ALONE, "gpus_per_worker": 1}
    flags = train_flags(small_sets, tmp_path, "unfit", tmp_path, **training)
    with Typed([*flags, "--ray.address", nodes.address], RAY_AUTH_MODE="disabled") as refused:
        assert refused.ends() == 2, refused.text
    assert re.search(
        r"error: gpus: \S+ \(\w{6}\): 1 x NVIDIA L4, driver 470\.57\.02; CUDA 13 of torch needs 580"
        r" or newer; install it there: sudo apt-get install nvidia-driver-580-server",
        refused.text,
    )
    assert "warning: token: " in refused.text
