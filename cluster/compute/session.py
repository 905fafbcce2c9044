"""Join or start Ray, and refuse what the cluster cannot hold before anything is spent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import PlainError, UsageError

# Each was seen to cost seconds or to fill the log of a training run; a value the user has set
# stays.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A group that failed has nothing to say good-bye to (30 s), and one that does not fit the nodes
    # that are left is tried in another size (60 s).
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
# What processes on other machines need and do not inherit. Keys and tokens are left out on purpose:
# a runtime environment can be read in Ray's dashboard and logs, so nodes get credentials from their
# instance profile or from the environment in which `ray start` ran.
PASSED_ON = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)


class RayConfig(BaseModel):
    """Where the work runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = Field(
        default=None,
        description=(
            "host:port of a running Ray cluster, or auto; unset: the cluster this job was submitted"
            " to, else Ray is started on this machine"
        ),
    )
    num_cpus: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPUs to offer when Ray is started on this machine; unset: all",
    )
    logs: bool = Field(
        default=False,
        description=(
            "show the log lines of Ray's worker processes too; they always are in Ray's log folder"
        ),
    )
    autoscaling: bool = Field(
        default=False,
        description=(
            "the cluster grows on demand: do not refuse requests that today's nodes cannot hold"
        ),
    )


def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    logs: bool = False,
    needs: Sequence[str] = (),
) -> None:
    """Join the cluster at `address`, or the one of RAY_ADDRESS (as set in a submitted job), else
    start Ray here. A second call does nothing.

    `needs` names modules that this process will import next: that is done in a thread, in the
    seconds in which it waits for Ray. Raises `PlainError` within seconds when nothing answers
    there.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not logs:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        return
    for module in needs:
        threading.Thread(
            target=import_early, args=(module,), name=f"import {module}", daemon=True
        ).start()
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None or address == "local":
        # Nobody reclaims this machine, and the watcher is one more process to start (5 CPU
        # seconds).
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray ends processes that idle for a second beyond one a CPU; every epoch then starts its
        # read tasks in new ones (8 s on two cores).
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
        # The dashboard is left out: it takes seconds to start and needs its own port.
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=logs,
            logging_level="ERROR",
        )
        end_like_ctrl_c()
        return
    check_answers(address)
    runtime_env: dict = {
        "env_vars": {k: os.environ[k] for k in (*QUIET, *PASSED_ON) if k in os.environ}
    }
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        # A submitted job brought its working directory along; any other driver sends the code it
        # runs itself.
        runtime_env["working_dir"] = str(Path(__file__).parents[2])
    try:
        ray.init(
            address=address, runtime_env=runtime_env, log_to_driver=logs, logging_level="ERROR"
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PlainError(
            f"ray.address {address}: Ray did not accept the connection"
            f" ({str(error).splitlines()[0]}); is it the right cluster, version and token"
            " (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)?"
        ) from error
    end_like_ctrl_c()


def end_like_ctrl_c() -> None:
    """SIGTERM (of `ray job stop`, a service manager, a container's end) is what Ctrl-C is:
    interrupted and resumable. Ray, connected, would abort the process with a stack dump.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def import_early(module: str) -> None:
    with contextlib.suppress(
        Exception
    ):  # whoever really needs it reports why it cannot be imported
        import_module(module)


def check_answers(address: str) -> None:
    """Whether something listens at host:port. Ray itself tries for half a minute before it says so."""
    if address == "auto":
        return
    if "://" in address:
        raise UsageError(
            f"ray.address {address}: give host:port of the cluster's head; from outside the cluster"
            " use `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(
            f"ray.address {address}: must read host:port (the head's port is 6379 unless chosen"
            " otherwise) or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        raise PlainError(
            f"ray.address {address}: nothing answers there ({error.strerror or error}); start it"
            " with `ray start --head`, or leave the address out"
        ) from None


def fetch(results: Any) -> Any:
    """`ray.get`. A `PlainError` of a task is raised as it was there, and not as Ray's wrapping of
    it.
    """
    import ray

    try:
        return ray.get(results)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PlainError):
            raise error.cause from None
        raise
