"""Commands as a user types them, in processes of their own: on a Ray that the command starts,
interrupted, and where no cluster answers. On a cluster that runs already:
tests/integration/test_driver_faults.py. Submitted jobs: tests/integration/test_documents.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.runs import run_folder
from tests.support.ray_nodes import free_port
from tests.support.trainings import ROOT, Typed, environment

pytestmark = pytest.mark.integration

RECIPE = {
    "model": {"backbone": "resnet18", "width": 64},
    "canvas": {"height": 64, "width": 96},
    "training": {
        "epochs": 1,
        "batch_size": 4,
        "workers": 1,
        "cpus_per_worker": 0.5,
        "log_seconds": 0,
        "evaluation": "between",
    },
}


@pytest.fixture(scope="module")
def job(small_sets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small shard sets, a tiny recipe, and a folder for the runs."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    return {"folder": str(folder), "recipe": str(folder / "recipe.yaml"), **small_sets}


def flags(job: dict[str, str], name: str) -> list[str]:
    data = ["--data.train", job["train"], "--data.val", job["val"]]
    return ["--config", job["recipe"], *data, "--storage", f"{job['folder']}/store", "--name", name]


def test_as_a_module_interrupted_and_typed_again(job: dict[str, str], tmp_path: Path) -> None:
    """With a Ray of its own on this machine. Ctrl-C ends it in a line; typed again, the command
    continues the run to its end.
    """
    run = f"{job['folder']}/store/runs/module"
    typed = [*flags(job, "module"), "--training.checkpoint_images", "4"]
    gate = (
        f"from tests.support import gates; gates.gate_launches({str(tmp_path / 'gate')!r}, steps=3)"
    )
    with Typed(typed, patch=gate) as driver:
        driver.until("checkpoint ")
        driver.process.send_signal(signal.SIGINT)
        assert driver.ends() == 5, driver.text
    # Behind the line come, at most, a few of Ray's own.
    ended = driver.text.splitlines()[-4:]
    assert "error: interrupted; the same command continues where it stopped" in ended, driver.text
    assert "Traceback" not in driver.text and "Stack" not in driver.text
    # Its end frees the run.
    assert run_folder.read(run, "driver.json") is None
    command = [sys.executable, "-m", "pipelines.train", *typed]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing from" in done.stdout and "best     AP" in done.stdout
    assert run_folder.read_finished(run) == run_folder.Finished(24, 1)


def test_an_address_that_does_not_answer(job: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "pipelines.train",
        *flags(job, "nowhere"),
        "--ray.address",
        f"127.0.0.1:{free_port()}",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "nothing answers there" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_any_number_of_cpus_prepares_the_same_set(ray_cluster: str, tmp_path: Path) -> None:
    """One CPU of a Ray that the command starts, and the four of the shared cluster."""
    from pipelines.prepare import PrepareConfig, main

    random = np.random.default_rng(0)
    content: dict[str, list] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "noise"}],
    }
    (tmp_path / "images").mkdir()
    for number in range(1, 15):
        Image.fromarray(random.integers(0, 256, (500, 640, 3), np.uint8)).save(
            tmp_path / f"images/{number}.jpg", quality=90
        )
        content["images"].append(
            {"id": number, "file_name": f"{number}.jpg", "height": 500, "width": 640}
        )
        box = {"bbox": [5, 5, 10 * number, 50], "iscrowd": 0, "area": 500}
        content["annotations"].append({"id": number, "image_id": number, "category_id": 7, **box})
    (tmp_path / "images/13.jpg").write_bytes(b"no picture")
    (tmp_path / "coco.json").write_text(json.dumps(content))
    options = {
        "annotations": f"{tmp_path}/coco.json",
        "images": f"{tmp_path}/images",
        "shard_size_mib": 1,
        "max_quarantined": 0.5,
    }
    typed = [f"--{name}={value}" for name, value in options.items()]
    typed += [f"--output={tmp_path}/shards-1", "--ray.num_cpus=1"]
    command = [sys.executable, "-m", "pipelines.prepare", *typed]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
    main(PrepareConfig.model_validate({**options, "output": f"{tmp_path}/shards-4"}))
    one, four = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / f"shards-{cpus}").glob("*"))}
        for cpus in (1, 4)
    )
    shards = [name for name in one if name.startswith("shard-")]
    assert len(shards) >= 4 and one.keys() == four.keys()
    assert [
        name for name in (*shards, "index.json", "quarantine.parquet") if one[name] != four[name]
    ] == []
