"""What a training survives, with real processes: workers, drivers and nodes are killed and stopped,
disks fill up, storage goes away.

That no image is lost or seen twice is told by the bits: with the same number of workers before and
after a fault, the weights at the end are those of a run without one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from PIL import Image
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cluster.errors import DiskFull, PlainError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.shards.format import Row
from cluster.shards.index import open_shard_set, write_index
from cluster.shards.read import read_rows
from cluster.shards.write import write_shard
from cluster.storage import files
from cluster.training import launch
from cluster.training.checkpoints import fetch
from tests.integration.test_launch import environment
from tests.support.faulty_s3 import FaultyS3, Rule
from tests.support.paced import paced
from tests.support.ray_nodes import Nodes

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "model": {
        "backbone": "resnet18",
        "width": 64,
        "norm": "batch",
        "anchors": {"base_sizes": [12, 24, 48, 96, 192]},
    },
    "canvas": {"height": 64, "width": 96},
    "optimizer": {"name": "adamw", "learning_rate": 0.001, "ema_images": 20},
}
TRAINING = {
    "epochs": 2,
    "batch_size": 4,
    "workers": 2,
    "cpus_per_worker": 0.5,
    "evaluate_every": 2,
    "evaluation": "between",
    "log_steps": 1,
}
TRAINING |= {"checkpoint_images": 8, "keep_checkpoints": 100}
Event = dict[str, Any]


@pytest.fixture(scope="module")
def data(
    ray_cluster: str, small_coco: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """24 and 8 images as shard sets on local disk, and the folder."""
    from pipelines.prepare import PrepareConfig, main

    folder = tmp_path_factory.mktemp("faults")
    for split in ("train", "val"):
        annotations = f"{small_coco}/annotations/instances_{split}.json"
        main(
            PrepareConfig(
                annotations=annotations,
                images=f"{small_coco}/images/{split}",
                output=f"{folder}/{split}",
                row_group_rows=4,
            )
        )
    return {"folder": str(folder), "train": f"{folder}/train", "val": f"{folder}/val"}


def configured(
    data: dict[str, str], name: str, *, store: str | None = None, **training: Any
) -> TrainConfig:
    places = {
        "data": {"train": data["train"], "val": data["val"]},
        "storage": store or data["folder"],
        "name": name,
    }
    return TrainConfig.model_validate({**TINY, **places, "training": {**TRAINING, **training}})


class Watched:
    """Trains here, keeps the events, and after each checkpoint that is in storage does the next of
    `faults` to the workers, {rank: pid}, at a pace that leaves time for it. `callbacks` go to Ray
    Train.
    """

    def __init__(
        self,
        config: TrainConfig,
        *faults: Callable[[dict[int, int]], None],
        callbacks: Sequence[Any] = (),
    ):
        self.faults, self.stored, self.events, self.pids = list(faults), False, [], {}
        self.error: PlainError | None = None
        try:
            launch.launch(
                config, on_event=self.hear, callbacks=[*callbacks, *([paced()] if faults else [])]
            )
        except PlainError as error:
            self.error = error

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if event["kind"] == "workers":
            self.pids = {worker["rank"]: worker["pid"] for worker in event["workers"]}
        if event["kind"] in ("checkpoint", "start"):
            # Not one that a group before this one has taken.
            self.stored = event["kind"] == "checkpoint"
        if event["kind"] == "step" and self.stored and self.faults:
            self.stored = False
            self.faults.pop(0)(self.pids)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["kind"] == kind]


def last_weights(config: TrainConfig) -> dict[str, bytes]:
    last = run_folder.checkpoints(config.run_uri)[-1]
    assert last.endswith(f"images-{48:012d}")
    return {
        name: files.read_bytes(f"{last}/{name}")
        for name in ("model.safetensors", "ema.safetensors")
    }


@pytest.fixture(scope="module")
def untouched(data: dict[str, str]) -> dict[str, bytes]:
    config = configured(data, "untouched")
    Watched(config)
    return last_weights(config)


def send(number: signal.Signals, *ranks: int) -> Callable[[dict[int, int]], None]:
    return lambda pids: [os.kill(pids[rank], number) for rank in ranks]


def test_workers_that_die_or_hang_cost_no_image(
    data: dict[str, str], untouched: dict[str, bytes]
) -> None:
    """One is killed, then all, then one is stopped as a whole, so that it cannot say anything; the
    other waits for it and does. One retry is enough: failures count only where no checkpoint came
    between them.
    """
    config = configured(data, "faults", retries=1, hang_minutes=0.25)
    run = Watched(
        config, send(signal.SIGKILL, 1), send(signal.SIGKILL, 0, 1), send(signal.SIGSTOP, 1)
    )
    assert run.error is None and run.faults == []
    first, second, third = run.of("failure")
    assert first["rank"] == 1 and {f["then"] for f in (first, second, third)} == {
        "restart 1 of 1 since the newest checkpoint"
    }
    assert all(
        f["reason"] == "its process ended (killed, or out of memory)"
        for f in (first, second, third)
    )
    assert [hang["rank"] for hang in run.of("hang")] == [third["rank"]] == [0]
    assert (
        "wait for each other" in run.of("hang")[0]["place"]
        or "waits for other ranks" in run.of("hang")[0]["place"]
    )
    assert len(run.of("start")) == len(run.of("workers")) == 4 and len(run.of("resume")) == 3
    assert last_weights(config) == untouched
    assert run_folder.read(config.run_uri, run_folder.FINISHED) == {"images_seen": 48, "epochs": 2}


def bad_start() -> Any:
    """For Ray Train: the first group's workers do not find each other, of the second one rank 1
    dies before it trains.
    """

    def find_no_one() -> None:
        raise RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc] connect: no route to host")

    # Defined in here, so that it is sent with its code: Ray's processes do not know this module.
    class BadStart(WorkerGroupCallback):
        def __init__(self) -> None:
            self.marks = tempfile.mkdtemp()

        def after_worker_group_start(self, worker_group: Any) -> None:
            attempt = len(os.listdir(self.marks))
            Path(self.marks, str(attempt)).touch()
            if attempt == 0:
                worker_group.execute(find_no_one)
            if attempt == 1:
                worker_group.execute_single(
                    1, os.kill, worker_group.get_workers()[1].metadata.pid, signal.SIGKILL
                )

    return BadStart()


def test_a_group_that_does_not_start_is_started_again(
    data: dict[str, str], untouched: dict[str, bytes]
) -> None:
    config = configured(data, "bad-start", retries=2)
    run = Watched(config, callbacks=[bad_start()])
    assert run.error is None
    first, second = run.of("start_failed")
    assert first["who"] == "the start of the workers" and first["reason"].endswith(
        "connect: no route to host"
    )
    assert (
        second["who"] == "a worker that started"
        and second["reason"] == "its process ended (killed, or out of memory)"
    )
    assert [one["then"][:14] for one in (first, second)] == ["restart 1 of 2", "restart 2 of 2"]
    assert b"find_no_one" in files.read_bytes(first["details"]) and not run.of("waiting")
    assert last_weights(config) == untouched
    error = Watched(configured(data, "no-start", retries=0), callbacks=[bad_start()]).error
    assert re.fullmatch(
        r"training no-start failed after 0 retries: the start of the workers: .*no route to host",
        str(error),
    )


def test_one_rank_raises_and_the_others_stop_with_its_traceback(data: dict[str, str]) -> None:
    """A picture that is none, in rank 1's half of the epoch, in a set that was not made by prepare.
    Without an end of the others' waiting this test would take the half hour of torch's timeout.
    """
    source = open_shard_set(data["train"])
    victim = image_of_rank(source, rank=1, seed=0)
    rows = [row for group in range(len(source.rows_per_group)) for row in group_rows(source, group)]
    made = [replace(row, image=b"not a picture") if row.image_id == victim else row for row in rows]
    uri = f"{data['folder']}/one-broken"
    shard = write_shard(uri, "shard-00000-of-00001.parquet", made, row_group_rows=4)
    write_index(
        uri,
        categories=source.categories,
        shards=[shard],
        counts=source.counts,
        source_digest="none",
    )
    run = Watched(configured({**data, "train": uri}, "one-raises", retries=0))
    (failure,) = run.of("failure")
    assert (failure["rank"], failure["then"]) == (1, "a restart would meet it again")
    assert "cannot be decoded" in failure["reason"]
    assert re.fullmatch(
        rf"training one-raises stopped: .* \(image_id {victim}\): it cannot be decoded.*",
        str(run.error),
    )
    details = files.read_bytes(failure["details"]).decode()
    assert "Traceback" in details and "detector/image.py" in details


def group_rows(shard_set: Any, group: int) -> list[Row]:
    count = shard_set.rows_per_group[group]
    table = read_rows([shard_set.locate_group(group)], [(0, row) for row in range(count)])
    return [
        Row(*(row | {"boxes": np.array(row["boxes"], np.float32).reshape(-1, 4)}).values())
        for row in table.to_pylist()
    ]


def image_of_rank(shard_set: Any, *, rank: int, seed: int) -> int:
    """An image of the first batch that this rank of two gets in the first epoch."""
    from cluster.loading import epoch_plan
    from cluster.shards.read import read_columns

    stored = epoch_plan.epoch_sequence(shard_set.rows_per_group, seed=seed, epoch=0)
    (start, _), *_ = epoch_plan.cut([(0, len(stored))], rank=rank, batches=[2, 2])
    return read_columns(shard_set, ["image_id"])["image_id"].to_pylist()[stored[start]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for one checkpoint of this network (53 MB with its average and Adam's moments x 4), and
    not for two.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=250m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_under_the_checkpoints_is_one_line_and_the_last_one_is_whole(
    data: dict[str, str], small_disk: Path
) -> None:
    config = configured(data, "full", checkpoint_folder=str(small_disk))

    def fill(_: dict[int, int]) -> None:
        # To the last page: the worker may be writing its next checkpoint meanwhile.
        with (
            contextlib.suppress(OSError),
            open(small_disk / "somebody's", "wb", buffering=0) as file,
        ):
            while True:
                file.write(bytes(1 << 20))

    run = Watched(config, fill)
    assert type(run.error) is DiskFull and str(run.error).startswith(
        f"training full stopped: {small_disk}"
    )
    assert "the disk is full" in str(run.error) and "the checkpoints before it are whole" in str(
        run.error
    )
    # Not tried again: it would be as full.
    assert len(run.of("start")) == 1
    os.unlink(small_disk / "somebody's")
    again = Watched(config)
    assert again.error is None and len(again.of("resume")) == 1
    assert run_folder.read(config.run_uri, run_folder.FINISHED) == {"images_seen": 48, "epochs": 2}


class Away(Rule):
    """Between `begin` and `end`, every request whose path has `where` in it meets the fault; `met`
    counts them.
    """

    where, met = None, 0

    def begin(self, fault: str, where: str) -> None:
        self.fault, self.where, self.met = fault, where, 0

    def end(self) -> None:
        self.where = None

    def applies(self, method: str, path: str) -> bool:
        meets = self.where is not None and self.where in path
        self.met += meets
        return meets


def test_training_goes_on_while_storage_is_away(
    data: dict[str, str], bucket: str, tmp_path: Path
) -> None:
    """For some steps storage takes no checkpoint and says so, then it takes them and says nothing,
    then it is gone for a minute: no workers are restarted, and after each the next checkpoint
    arrives. The driver has a Ray of its own, whose workers go through the proxy.
    """
    rule = Away("answer", seconds=5)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        training = {
            "epochs": 500,
            "evaluate_every": 500,
            "keep_checkpoints": 2,
            "checkpoint_folder": str(tmp_path / "waiting"),
        }
        flags = flags_of(data, "away", f"{bucket}/store", tmp_path, **training)
        with Typed(flags, AWS_ENDPOINT_URL=proxy.url) as driver:
            driver.until(" checkpoint s3://")
            for fault, where, seconds in (
                ("answer", "/checkpoints/", 0),
                ("stall", "/checkpoints/", 0),
                ("reset", "", 60),
            ):
                rule.begin(fault, where)
                over = time.monotonic() + seconds
                # Lines of steps from before it may be the next ones that are read.
                while time.monotonic() < over or not rule.met:
                    driver.until("img/s")
                driver.until("img/s", times=10)
                rule.end()
                driver.until(" checkpoint s3://")
            driver.interrupt()
    assert driver.text.count("training on 2 workers") == 1, driver.text
    newest = run_folder.checkpoints(f"{bucket}/store/runs/away")[-1]
    assert newest >= re.findall(r" checkpoint (s3://\S+)", driver.text)[-1]
    fetch(newest, str(tmp_path / "fetched"))


def flags_of(
    data: dict[str, str], name: str, store: str, tmp_path: Path, **training: Any
) -> list[str]:
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(json.dumps({**TINY, "training": {**TRAINING, "log_seconds": 0, **training}}))
    places = [
        "--data.train",
        data["train"],
        "--data.val",
        data["val"],
        "--storage",
        store,
        "--name",
        name,
    ]
    return ["--config", str(recipe), *places, "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]


class Typed:
    """`python -m pipelines.train`, or another verb, with `patch` run before it, and its lines."""

    def __init__(self, flags: list[str], *, verb: str = "train", patch: str = "", **changes: str):
        command = [
            sys.executable,
            "-c",
            (
                f"{patch}\nimport runpy; runpy.run_module('pipelines.{verb}', run_name='__main__',"
                " alter_sys=True)"
            ),
            *flags,
        ]
        env = environment(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1", **changes)
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def until(self, words: str, *, times: int = 1) -> None:
        """So many more lines with these words."""
        for line in self.process.stdout:
            self.text += line
            times -= words in line
            if not times:
                return
        raise AssertionError(f"{words}: the driver ended with {self.process.wait()}\n{self.text}")

    def ends(self) -> int:
        self.text += self.process.stdout.read()
        return self.process.wait()

    def interrupt(self) -> None:
        self.process.terminate()
        assert self.ends() == 5, self.text


def test_a_second_driver_of_the_same_run_is_refused(data: dict[str, str], tmp_path: Path) -> None:
    flags = flags_of(data, "held", data["folder"], tmp_path, epochs=500, evaluate_every=500)
    with Typed(flags) as first:
        first.until("img/s")
        again = [sys.executable, "-m", "pipelines.train", *flags]
        second = subprocess.run(again, cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert second.returncode == 2
        assert re.search(
            rf"error: .*runs/held: \S+ \(pid {first.process.pid}\) has trained it since .* UTC;"
            r" wait for its end",
            second.stderr,
        )
        assert first.process.poll() is None
        first.interrupt()
    # Its end frees the run.
    assert run_folder.read(f"{data['folder']}/runs/held", "driver.json") is None


def test_a_killed_driver_costs_no_image(
    data: dict[str, str], untouched: dict[str, bytes], ray_cluster: str, tmp_path: Path
) -> None:
    """The same command goes on, in the same MLflow run, which has every step at the end: also those
    that the killed one had heard of and not sent.
    """
    flags = [*flags_of(data, "killed", data["folder"], tmp_path), "--ray.address", ray_cluster]
    patch = (
        f"import sys; sys.path.append({str(ROOT)!r}); from tests.support import paced;"
        " paced.pace_launches()"
    )
    patch += "; from cluster.tracking import client as tracking; tracking.SEND_EVERY_S = 1e6"
    with Typed(flags, patch=patch, RAY_AUTH_MODE="disabled") as driver:
        driver.until(" checkpoint ", times=2)
        driver.process.kill()
    with Typed(flags, RAY_AUTH_MODE="disabled") as driver:
        assert driver.ends() == 0, driver.text
    assert "continuing from" in driver.text
    config = configured(data, "killed")
    assert last_weights(config) == untouched
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )
    assert (
        run.info.status == "FINISHED"
        and run.info.run_id == run_folder.read(config.run_uri, run_folder.TRACKING)["run_id"]
    )
    assert {
        metric.step for metric in client.get_metric_history(run.info.run_id, "train/box")
    } == set(range(4, 49, 4))


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes(environment(RAY_AUTH_MODE="disabled")) as cluster:
        yield cluster


def test_a_node_leaves_and_returns(data: dict[str, str], nodes: Nodes, tmp_path: Path) -> None:
    """1..2 workers on two nodes: on with one worker and the same global batch in two parts, and
    back to two from a checkpoint taken for that.
    """
    for name in ("first", "second"):
        nodes.add(name, cpus=1)
    flags = flags_of(
        data,
        "elastic",
        data["folder"],
        tmp_path,
        epochs=500,
        evaluate_every=500,
        min_workers=1,
        checkpoint_images=16,
    )
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
    run = f"{data['folder']}/runs/elastic"
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


def test_prepare_on_two_nodes_of_which_one_goes_away(
    nodes: Nodes, ray_cluster: str, tmp_path: Path
) -> None:
    """The set is, to the byte, what one machine makes of the same source."""
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
    source = [
        "--annotations",
        f"{tmp_path}/coco.json",
        "--images",
        f"{tmp_path}/images",
        "--shard_size_mib",
        "1",
    ]
    for name in ("first", "second"):
        nodes.add(name, cpus=1)
    with Typed(
        [*source, "--output", f"{tmp_path}/two", "--ray.address", nodes.address], verb="prepare"
    ) as two:
        two.until(" shards")
        nodes.kill("second")
        assert two.ends() == 0, two.text
    with Typed(
        [*source, "--output", f"{tmp_path}/one", "--ray.address", ray_cluster],
        verb="prepare",
        RAY_AUTH_MODE="disabled",
    ) as one:
        assert one.ends() == 0, one.text
    sets = [open_shard_set(f"{tmp_path}/{name}") for name in ("one", "two")]
    assert (
        len(sets[0].shards) > 20
        and sets[0].counts["images"] == 60
        and sets[0].digest == sets[1].digest
    )
    names = sorted(os.listdir(tmp_path / "one"))
    assert names == sorted(os.listdir(tmp_path / "two"))
    assert all(
        (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        for name in names
        if name != "report.html"
    )


def test_nodes_that_do_not_come_end_the_wait_in_one_line(
    data: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add("only", cpus=2)
    flags = flags_of(
        data, "waiting", data["folder"], tmp_path, epochs=500, evaluate_every=500, wait_minutes=0.5
    )
    with Typed([*flags, "--ray.address", nodes.address]) as driver:
        driver.until("images       12/")
        nodes.kill("only")
        assert driver.ends() == 1, driver.text
    assert "waiting for 2 workers of 0.5 CPUs since" in driver.text
    ended = (
        "error: training waiting stopped: no room for 2 workers of 0.5 CPUs in 0.5 minutes"
        " (training.wait_minutes)"
    )
    assert ended in driver.text
