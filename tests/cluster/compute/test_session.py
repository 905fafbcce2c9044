"""The address of a Ray cluster is checked before Ray tries it for half a minute."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from cluster.compute import session
from cluster.errors import DataError, PlainError, UsageError


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://head:10001", "give host:port of the cluster's head"),
        ("head", "must have the form host:port"),
        (":6379", "must have the form host:port"),
        ("head:ray", "must have the form host:port"),
    ],
)
def test_an_address_of_another_form_is_a_usage_error(address: str, line: str) -> None:
    with pytest.raises(UsageError, match=f"^ray.address {address}: {line}"):
        session.check_answers(address)


def test_an_address_where_nothing_listens_is_a_plain_error() -> None:
    with socket.socket() as closed:
        # Bound but not listening: connections are refused and nobody else gets the port.
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(PlainError, match="nothing answers there .*ray start --head") as raised:
            session.check_answers(f"127.0.0.1:{closed.getsockname()[1]}")
    assert raised.value.exit_code == 1


def test_an_address_of_the_environment_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("the address is checked first"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PlainError, match=f"^RAY_ADDRESS {address}: nothing answers there"):
            session.connect()


def test_ray_gets_the_folder_of_ray_tmpdir_else_of_tmpdir(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    own = f"ray-{os.getuid()}"
    assert session.temporary_folder() == f"/tmp/{own}/ray"
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "SOCKET_BYTES", 1000)
    monkeypatch.setenv("TMPDIR", "a")
    assert session.temporary_folder() == f"{tmp_path}/a/{own}/ray"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert session.temporary_folder() == f"{tmp_path}/{own}/ray"
    monkeypatch.setenv("RAY_TMPDIR", "")
    assert session.temporary_folder() == f"{tmp_path}/a/{own}/ray"


def test_a_folder_that_ray_cannot_use_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("the folder is checked first"))
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/nothing")
    with pytest.raises(UsageError, match="^TMPDIR .*nothing: there is no such folder"):
        session.connect()
    # /ray-UID/ray/session_, 26 characters of time, _, the process id, /sockets/plasma_store
    behind = (
        len(f"/ray-{os.getuid()}/ray/session_")
        + 26
        + 1
        + len(str(os.getpid()))
        + len("/sockets/plasma_store")
    )
    most = 107 - behind
    for name, length, fits in (("TMPDIR", most, True), ("RAY_TMPDIR", most + 1, False)):
        folder = Path("/tmp") / ("x" * (length - len("/tmp/")))
        monkeypatch.setattr(os.path, "isdir", lambda path: True)
        monkeypatch.setattr(os, "access", lambda path, mode: True)
        monkeypatch.setenv(name, str(folder))
        if fits:
            assert session.temporary_folder() == f"{folder}/ray-{os.getuid()}/ray"
            continue
        said = f"^RAY_TMPDIR {folder}: .* of 108 bytes, Linux takes 107; .* at most {most} bytes"
        with pytest.raises(UsageError, match=said):
            session.temporary_folder()


def test_an_address_where_something_listens_and_auto_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        session.check_answers(f"127.0.0.1:{server.getsockname()[1]}")
    session.check_answers("auto")


@pytest.mark.parametrize("handler", ["SIG_IGN", "default_int_handler"])
def test_sigterm_interrupts_also_where_sigint_is_ignored(handler: str) -> None:
    """A script's background job has SIGINT ignored; a service manager and `kill` send SIGTERM."""
    script = f"""
import os, signal, time
from cluster.compute.session import end_like_ctrl_c
signal.signal(signal.SIGINT, signal.{handler})
end_like_ctrl_c()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "interrupted\n", done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_an_interrupt_anywhere_leaves_the_exit_code(name: str, tmp_path: Path) -> None:
    """Python itself would end by SIGINT where the signal came in an `exec` of text."""
    (tmp_path / "interrupted.py").write_text(f"""
import signal, sys
from cluster.compute.session import end_like_ctrl_c
signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup it is ignored, and stays so.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
end_like_ctrl_c()
try:
    exec("signal.raise_signal(signal.{name})")
except KeyboardInterrupt:
    sys.exit(5)
""")
    root = str(Path(__file__).parents[3])
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    done = subprocess.run([sys.executable, "-m", "interrupted"], env=path, capture_output=True)
    assert (done.returncode, done.stderr) == (5, b"")


def test_sigterm_while_ray_starts_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        # The first thing that ray.init does.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(session, "check_answers", lambda address, source: None)
    try:
        for address in ("local", "head:6379"):
            with pytest.raises(KeyboardInterrupt):
                session.connect(address)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_plain_error_of_a_task_is_raised_as_it_is(ray_cluster: str) -> None:
    def fail() -> None:
        raise DataError("a.jpg: is damaged")

    with pytest.raises(DataError) as raised:
        session.fetch([ray.remote(num_cpus=0)(fail).remote()])
    assert str(raised.value) == "a.jpg: is damaged"


def test_ray_on_this_machine_has_a_token_that_this_user_alone_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that what is set meanwhile is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    # Ray in this process keeps its mode.
    config = SimpleNamespace(Config=SimpleNamespace(initialize=lambda text: None))
    monkeypatch.setattr(session, "import_module", lambda name: config)
    token = tmp_path / ".ray/auth_token"
    session._make_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    first = token.read_text()
    assert len(first) == 64 and token.stat().st_mode & 0o777 == 0o600
    # One that Ray has written is kept, and closed to others.
    token.chmod(0o644)
    session._make_token()
    assert token.read_text() == first and token.stat().st_mode & 0o777 == 0o600
    token.unlink()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    session._make_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    session._make_token()
    assert not token.exists() and os.environ["RAY_AUTH_MODE"] == "disabled"


def test_rays_folder_lies_in_one_of_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(session, "SOCKET_BYTES", 1000)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = []
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options["_temp_dir"]))
    monkeypatch.setattr(session, "end_like_ctrl_c", lambda: None)
    session.connect()
    (folder,) = started
    above = Path(folder).parent
    assert above.parent == tmp_path and above.stat().st_mode & 0o777 == 0o700
    above.rmdir()
    above.symlink_to(tmp_path)
    with pytest.raises(UsageError, match=f"{above}: is a link or no folder; remove it, or set RAY"):
        session.connect()
    assert started == [folder]
