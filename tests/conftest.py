"""What tests share: one Ray cluster and one S3 server for each process of a test session, one small
data set and its shard sets for all of them.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.once import made_once

# The same examples every time: a run says something about the code and not about the day.
# `--hypothesis-profile default` looks further.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
# So does FUZZ_EXAMPLES=1000000, in the tests of damaged files alone if they alone are run.
if examples := os.environ.get("FUZZ_EXAMPLES"):
    settings.register_profile(
        "fuzz", max_examples=int(examples), deadline=None, database=None, print_blob=True
    )
    settings.load_profile("fuzz")

# Before anything imports ray: it reads these once.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Seconds between two looks at the workers, 2 by default: each training ends up to so much later
    # than its workers.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # As `connect` sets it: otherwise a process starts for each CPU, and few of them are used.
    "RAY_prestart_worker_first_driver": "0",
    # Otherwise Ray ends processes that idle for a second, and the next task starts a new one.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Threads of torch that wait for each other leave the core to other processes.
    "OMP_WAIT_POLICY": "PASSIVE",
}
os.environ.update(QUIET)
os.environ.pop("RAY_ADDRESS", None)

S3_BUCKETS = itertools.count()


# The files that take longest, longest first. With two processes (`make test`) a long file that
# begins last would be waited for by the other process.
LONGEST = (
    "tests/integration/test_worker_faults.py",
    "tests/integration/test_documents.py",
    "tests/integration/test_launch.py",
    "tests/integration/test_node_faults.py",
    "tests/integration/test_mlflow.py",
    "tests/integration/test_storage_faults.py",
    "tests/integration/test_driver_faults.py",
    "tests/integration/test_ceph.py",
    "tests/pipelines/test_run.py",
    "tests/pipelines/test_train.py",
    "tests/pipelines/test_sweep.py",
    "tests/pipelines/test_prepare.py",
    "tests/detector/test_step.py",
    "tests/detector/test_export.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The processes share the cores, so torch has one thread in each.
        os.environ["OMP_NUM_THREADS"] = "1"
    # Ray drops the handles of its own processes at shutdown without waiting for them.
    config.addinivalue_line(
        "filterwarnings", r"ignore:subprocess \d+ is still running:ResourceWarning"
    )


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server in this process. AWS_* is set for this process and for what it
    starts.
    """
    from moto.server import ThreadedMotoServer

    # Its request log goes to whatever stderr a test had captured when the first request came, which
    # is closed by the next one.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = dict(os.environ)
    os.environ.update(settings)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    yield settings["AWS_ENDPOINT_URL"]
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.fixture
def bucket(s3: str) -> str:
    """The URI of a fresh, empty bucket."""
    import boto3

    name = f"bucket-{next(S3_BUCKETS)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[str]:
    """The address of a Ray cluster of 4 CPUs that this process is connected to. Its workers see the
    S3 server.
    """
    import ray

    passed_on = QUIET | {
        name: value for name, value in os.environ.items() if name.startswith("AWS_")
    }
    # Four CPUs on whatever machine: with two, two workers would leave the data tasks none.
    options = {
        "num_cpus": 4,
        "include_dashboard": False,
        "object_store_memory": 300_000_000,
        "logging_level": "WARNING",
    }
    try:
        context = ray.init(**options, runtime_env={"env_vars": passed_on})
    except Exception as error:
        # Ray gives its own agents a fixed 15 s to start, which two busy cores do not always manage
        # with a cold file cache.
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        context = ray.init(**options, runtime_env={"env_vars": passed_on})
    # It copies what Ray's processes print to this one, where nobody reads it, for 2 % of a core.
    ray._private.worker._global_node.kill_log_monitor()
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of the session: xdist gives each its own base folder in it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def small_coco(session_folder: Path) -> Path:
    """A folder with images/{train,val} and annotations/instances_{train,val}.json: 24 and 8
    synthetic images. Not to be written to.
    """
    from cluster.prepare.synthetic import make_coco

    def make(folder: Path) -> None:
        make_coco(str(folder), train_images=24, val_images=8, seed=0)

    return made_once(session_folder / "coco", make)


@pytest.fixture(scope="session")
def small_sets(session_folder: Path, small_coco: Path, ray_cluster: str) -> dict[str, str]:
    """The shard sets of the two splits of `small_coco`, {"train": folder, "val": folder}, in row
    groups of 4. Not to be written to.
    """

    def make(folder: Path) -> None:
        from pipelines.prepare import PrepareConfig, main

        for split in ("train", "val"):
            main(
                PrepareConfig(
                    annotations=f"{small_coco}/annotations/instances_{split}.json",
                    images=f"{small_coco}/images/{split}",
                    output=f"{folder}/{split}",
                    row_group_rows=4,
                )
            )

    folder = made_once(session_folder / "sets", make)
    return {split: str(folder / split) for split in ("train", "val")}
