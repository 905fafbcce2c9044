"""Connect to a Ray cluster, or start Ray on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.compute.private_folder import make_private
from cluster.errors import PlainError, UsageError, has_secret

# Ray's defaults cost seconds or fill the log of a training run. A value that the user has set
# stays.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # The default waits 30 s for a process group whose peers are dead, and 60 s for a worker group
    # that does not fit on the remaining nodes and is then tried in another size.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
# Variables that processes on other machines need and do not inherit. Keys and tokens are left out
# on purpose: Ray's dashboard and logs show a runtime environment, so nodes get credentials from
# their instance profile or from the environment of `ray start`.
_PASSED_ON = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)

SOCKET_BYTES = 107
"""Of the path of a Unix socket, at most."""


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
            "the cluster grows on demand: accept requests that today's nodes cannot place"
        ),
    )


def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    logs: bool = False,
    needs: Sequence[str] = (),
) -> None:
    """Connect to the cluster at `address`, else to that of RAY_ADDRESS (set in a submitted job),
    else start Ray on this machine. A second call does nothing.

    `needs` names modules that this process will import next; a thread imports them while this one
    waits for Ray. `PlainError` within seconds where nothing answers at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not logs:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        return
    early = threading.Thread(target=_import_early, args=(needs,), name="imports", daemon=True)
    early.start()
    source = "ray.address" if address else "RAY_ADDRESS"
    address = _given(address)
    if address is None:
        _start_here(num_cpus=num_cpus, logs=logs)
        early.join()
        return
    check_answers(address, source=source)
    passed_on = {
        name: value
        for name in (*QUIET, *_PASSED_ON)
        if (value := os.environ.get(name)) is not None and not has_secret(value)
    }
    runtime_env: dict[str, Any] = {"env_vars": passed_on}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        # A submitted job brings its own working directory; any other driver sends its own code.
        runtime_env["working_dir"] = str(Path(__file__).parents[2])
    try:
        _start(
            address=address,
            runtime_env=runtime_env,
            log_to_driver=logs,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PlainError(
            f"{source} {address}: Ray did not accept the connection"
            f" ({str(error).splitlines()[0]}); is it the right cluster, version and token"
            " (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)?"
        ) from error
    # Two threads that import packages which import each other may both get half of one: seen as
    # KeyError: 'ray.data._internal.cluster_autoscaler'.
    early.join()


def _given(address: str | None) -> str | None:
    """The address of the cluster to join; None where Ray is to be started on this machine."""
    given = address or os.environ.get("RAY_ADDRESS") or "local"
    return None if given == "local" else given


def would_start(address: str | None) -> bool:
    """Whether `connect` would start Ray on this machine, and has not done so yet."""
    ray = sys.modules.get("ray")
    return _given(address) is None and not (ray is not None and ray.is_initialized())


def _start_here(*, num_cpus: int | None, logs: bool) -> None:
    """Start Ray on this machine, for this user alone."""
    folder = temporary_folder()
    # Ray opens its own folders to all users; nobody else gets past this one.
    make_private(os.path.dirname(folder), remedy="set RAY_TMPDIR to another folder")
    _make_token()
    # Nobody preempts this machine, and the watcher is one more process to start (5 CPU
    # seconds).
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray ends idle processes beyond one per CPU after a second; every epoch would then start
    # its read tasks in new processes (8 s on two cores).
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    # By default Ray starts a process for each CPU at once (0.6 CPU seconds each). A training
    # uses one of them: Ray Train gives its own processes another environment.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # No dashboard: it takes seconds to start and needs its own port.
    _start(
        address="local",
        _temp_dir=folder,
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=logs,
        logging_level=logging.ERROR,
    )


def _start(**options: Any) -> None:
    """`ray.init`, at whose beginning Ray takes SIGTERM for itself."""
    import ray

    if not options["log_to_driver"]:
        _say_nothing_of_workers()
    try:
        ray.init(**options)
    except SystemExit as end:
        # What the handler of Ray makes of the signal.
        if end.code == signal.SIGTERM:
            raise _Interrupt from None
        raise
    end_like_ctrl_c()


def _make_token() -> None:
    """Ray on this machine takes commands from whoever has its token alone, unless the user has set
    RAY_AUTH_MODE. Ray itself would write a new token into a file that all users can read.
    """
    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        return
    # Ray has read its variables when it was imported, and would not have this one.
    import_module("ray._raylet").Config.initialize("")
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        with contextlib.suppress(PermissionError):
            path.chmod(0o600)
        return
    with os.fdopen(file, "w") as token:
        token.write(secrets.token_hex(32))


def _say_nothing_of_workers() -> None:
    """Ray prints to stdout that a worker died, whatever `log_to_driver` says; who waits for the
    worker says it better. Another version of Ray may have no such function.
    """
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.__dict__["print_to_stdstream"] = lambda *_, **__: None


def end_like_ctrl_c() -> None:
    """Treat SIGTERM (from `kill`, `ray job stop`, a service manager, the end of a container) and
    SIGHUP as Ctrl-C: interrupted and resumable. Without this the process would end without a word,
    and connected to Ray abort with a stack dump.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
        # Of a terminal that is closed; `nohup` has it ignored.
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, _end)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


class _Interrupt(KeyboardInterrupt):
    """Ctrl-C that leaves the exit code to us. Where a plain `KeyboardInterrupt` comes out of an
    `exec` of text, as dataclasses have it, Python 3.11 ends by SIGINT (130) although it is caught:
    `run_eval_code_obj` looks for this very type.
    """


def _interrupt(*_: object) -> None:
    raise _Interrupt


def _end(*_: object) -> None:
    # A shell without job control starts its background jobs with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):
        raise _Interrupt
    # Ray Tune has a handler of its own for it.
    signal.raise_signal(signal.SIGINT)


def _import_early(modules: Sequence[str]) -> None:
    for module in modules:
        # The code that needs the module reports why it cannot be imported.
        with contextlib.suppress(Exception):
            import_module(module)


def check_answers(address: str, *, source: str = "ray.address") -> None:
    """`PlainError` where nothing listens at host:port. Ray itself tries for half a minute.
    `source`: the setting or variable that gives the address.
    """
    if address == "auto":
        return
    if "://" in address:
        raise UsageError(
            f"{source} {address}: give host:port of the cluster's head; from outside the cluster"
            " use `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(
            f"{source} {address}: must have the form host:port (the default port of a head is"
            " 6379) or be auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlainError(
            f"{source} {address}: nothing answers there ({reason}); start it"
            " with `ray start --head`, or leave the address out"
        ) from None


def temporary_folder() -> str:
    """The folder for Ray's files on this machine: `ray-UID/ray` in RAY_TMPDIR, else in TMPDIR,
    else in /tmp. `UsageError` where one of them cannot be used, or its path is too long for Ray's
    sockets.
    """
    source, parent = "/tmp", "/tmp"
    # Python passes over a TMPDIR that it cannot use, and Ray fails with a traceback.
    for name in ("TMPDIR", "RAY_TMPDIR"):
        if value := os.environ.get(name):
            source, parent = f"{name} {value}", os.path.abspath(value)
            if not os.path.isdir(parent):
                raise UsageError(f"{source}: there is no such folder; make it, or unset {name}")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise UsageError(f"{source}: this user may not write to it; name another folder")
    folder = os.path.join(parent, f"ray-{os.getuid()}", "ray")
    session = f"session_0000-00-00_00-00-00_000000_{os.getpid()}"
    length = len(os.fsencode(os.path.join(folder, session, "sockets", "plasma_store")))
    if length > SOCKET_BYTES:
        most = SOCKET_BYTES - length + len(os.fsencode(parent))
        raise UsageError(
            f"{source}: Ray's sockets below it would have paths of {length} bytes, Linux takes"
            f" {SOCKET_BYTES}; set RAY_TMPDIR to a folder with a path of at most {most} bytes, such"
            " as /tmp"
        )
    return folder


def fetch(results: Any) -> Any:
    """`ray.get`. A `PlainError` of a task is raised as it is, without Ray's wrapping."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(results)
    except RayTaskError as error:
        if isinstance(error.cause, PlainError):
            raise error.cause from None
        raise
