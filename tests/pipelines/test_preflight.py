"""The verb `preflight`: a line for each check, and an error for what failed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.compute import session
from cluster.errors import UsageError
from cluster.preflight import node
from cluster.tracking.config import TrackingConfig
from pipelines.preflight import PreflightConfig, main


@pytest.fixture(autouse=True)
def _has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever machine the tests run."""
    room = node.Space(total=1 << 40, free=1 << 39)
    monkeypatch.setattr(node, "disk", lambda: room)
    monkeypatch.setattr(node, "shared_memory", lambda: room)


def lines(text: str) -> dict[str, str]:
    """The state by the name of the check."""
    return {line.split()[1]: line.split()[0] for line in text.splitlines()}


def test_this_machine_is_looked_at_without_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session, "connect", lambda *_, **__: pytest.fail("nothing is started"))
    main(PreflightConfig(storage=str(tmp_path)))
    said = lines(capsys.readouterr().out)
    assert said["tracker"] == said["storage"] == said["python"] == "ok"
    assert {"packages", "gpus", "memory", "disk", "clock", "token"} <= set(said)


def test_a_tracker_that_is_down_and_a_missing_bucket_are_both_said(
    s3: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as closed:
        # Bound but not listening: connections are refused and nobody else gets the port.
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        config = PreflightConfig(storage="s3://no-such-bucket/x", tracking=TrackingConfig(uri=uri))
        with pytest.raises(UsageError, match=r"tracker: no MLflow server answers.*1 more failed"):
            main(config)
    out = capsys.readouterr().out
    assert lines(out)["tracker"] == lines(out)["storage"] == "fail"
    (tracker,) = (line for line in out.splitlines() if " tracker " in line)
    assert "start the server, correct --tracking.uri" in tracker
