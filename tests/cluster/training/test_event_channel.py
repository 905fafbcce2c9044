"""Events on their way to who prints and who tracks them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.training.event_channel import Guarded


def test_a_consumer_that_fails_is_told_of_once_and_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard: list[dict[str, Any]] = []

    def closed(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            raise BrokenPipeError(32, "Broken pipe")
        heard.append(event)

    guarded = Guarded(closed)
    for kind in ("start", "step", "step", "evaluation"):
        guarded({"kind": kind})
    assert [event["kind"] for event in heard] == ["start", "evaluation"]
    said = capsys.readouterr().err
    assert (
        said
        == "warning: what training says (step) could not be passed on: BrokenPipeError: [Errno 32]"
        " Broken pipe; it goes on\n"
    )


def test_a_terminal_that_is_closed_altogether_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    def fails(event: dict[str, Any]) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.stderr", Closed())
    Guarded(fails)({"kind": "step"})
