"""What tests share: one Ray cluster, one S3 server and one small data set for the whole session."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time: a run says something about the code and not about the day.
# `--hypothesis-profile default` looks further.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

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
}
os.environ.update(QUIET)
os.environ.pop("RAY_ADDRESS", None)

S3_BUCKETS = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
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
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def small_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/{train,val} and annotations/instances_{train,val}.json: 24 and 8
    synthetic images. Not to be written to.
    """
    from cluster.prepare.synthetic import make_coco

    folder = tmp_path_factory.mktemp("coco")
    make_coco(str(folder), train_images=24, val_images=8, seed=0)
    return folder
