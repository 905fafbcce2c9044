from __future__ import annotations

import io

from tune.console import Console
from tune.trials import Point, TrialRecord


def record(name: str, status: str, *aps: float, epochs: int = 4) -> TrialRecord:
    curve = tuple(Point(8 * epoch, epoch, ap, ap) for epoch, ap in enumerate(aps, 1))
    return TrialRecord(name, f"/s/{name}", 0, {"loss.gamma": 2.0}, epochs, "search", status, curve)  # type: ignore[arg-type]


RECORDS = [
    record("a", "done", 0.1, 0.3, 0.2),
    record("b", "stopped early", 0.05),
    record("c", "running", 0.2),
    record("d", "failed"),
]


def test_a_log_gets_lines() -> None:
    out = io.StringIO()
    with Console(out=out) as console:
        console.begin(RECORDS[:2], trials=6)
        console.say("[bold] is no markup")
        console.show(RECORDS)
    first, second = out.getvalue().splitlines()
    assert first == "[sweep] [bold] is no markup"
    assert second.startswith(
        "[sweep] 3 of 6 trials ended (1 done, 1 stopped early, 1 failed, 1 running); best so far AP"
        " 0.3000, a; about 1 min left"
    )


def test_no_time_is_foretold_before_a_trial_of_this_command_has_ended() -> None:
    console = Console(out=io.StringIO())
    console.begin(RECORDS, trials=6)
    assert "left" not in console.summary(RECORDS)
    assert console.summary([]) == "0 of 6 trials ended"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_with_both_aps() -> None:
    out = Terminal()
    with Console(out=out) as console:
        console.begin([], trials=6)
        console.show(RECORDS)
        console.say("trial-e started")
    text = out.getvalue()
    assert all(words in text for words in ("best AP", "last AP", "0.3000", "0.2000", "1/4"))
    assert "[sweep] trial-e started" in text
