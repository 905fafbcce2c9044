"""Checks before work starts, on a local disk and in a bucket. How they read the faults of S3 is in
test_s3.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.storage import files, preflight, uris


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_checks_pass_and_leave_no_file(root: str) -> None:
    files.write_bytes(uris.join(root, "folder/file"), b"x")
    preflight.check_readable(root)
    preflight.check_readable(uris.join(root, "folder"))
    preflight.check_readable(uris.join(root, "folder/file"))
    preflight.check_writable(uris.join(root, "new/deep"))
    assert files.list_files(root) == [(f"{root}/folder/file", 1)]


def test_preflight_names_a_missing_folder(root: str) -> None:
    with pytest.raises(UsageError, match=r"/nothing: .*(no such file|does not; check the key)"):
        preflight.check_readable(uris.join(root, "nothing"))


def test_preflight_refuses_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"file is a file, a folder is needed"):
        preflight.check_writable(str(tmp_path / "file" / "folder"))


PREFLIGHTS = pytest.mark.parametrize("check", [preflight.check_readable, preflight.check_writable])


@PREFLIGHTS
def test_preflight_names_a_missing_bucket(s3: str, check: Callable[[str], None]) -> None:
    with pytest.raises(UsageError, match=rf"there is no bucket 'never-made' at {s3}; create it"):
        check("s3://never-made/key")


@PREFLIGHTS
def test_preflight_names_wrong_credentials(
    bucket: str,
    checks_credentials: None,
    check: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    with pytest.raises(
        UsageError, match="does not know this access key; check AWS_ACCESS_KEY_ID"
    ) as caught:
        check(f"{bucket}/key")
    assert "verysecret" not in str(caught.value) and "AKIAWRONG" not in str(caught.value)


@PREFLIGHTS
def test_preflight_names_an_endpoint_that_does_not_answer(
    bucket: str, check: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        # Bound but not listening: connections are refused and nobody else gets the port.
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(
            UsageError, match=rf"{endpoint} does not answer; check AWS_ENDPOINT_URL"
        ):
            check(f"{bucket}/key")


@pytest.mark.parametrize("path", ["/proc/out", "/proc/out/deep"])
def test_preflight_names_a_folder_that_takes_no_files(path: str) -> None:
    """Permissions do not tell: root may write to /proc, and nobody can."""
    with pytest.raises(UsageError, match=rf"^{path}: .*/proc.*; .*give another path$"):
        preflight.check_writable(path)


def test_preflight_never_opens_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe: is neither a file nor a folder: .*; save its con"):
        preflight.check_readable(str(tmp_path / "pipe"))
