"""No name and no secret reaches a terminal as more than text."""

from __future__ import annotations

import sys

import pytest
from pydantic import BaseModel

from pipelines.command_line import run_verb
from pipelines.terminal import REPLACES, next_command, plain, plain_output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ünder 猫 🐈 $\\frac{$ _hidden", "ünder 猫 🐈 $\\frac{$ _hidden"),
        ("a\x1b[2J\x1b]0;title\x07b", "a\\x1b[2J\\x1b]0;title\\x07b"),
        ("one\ntwo\tthree\r\n", "one\ntwo\tthree\\r\n"),
        (f"{REPLACES}epoch 1", f"{REPLACES}epoch 1"),
        (f"{REPLACES}a{REPLACES}b", f"{REPLACES}a\\r\\x1b[Kb"),
        ("left\u202eright", "left\\u202eright"),
        ("at http://me:sesame@host/", "at http://***@host/"),
    ],
)
def test_a_text_is_printed_as_what_it_is(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain(text) == shown
    with plain_output():
        print(text, end="")
        print(text, end="", file=sys.stderr)
        sys.stdout.writelines([text])
    assert capsys.readouterr() == (shown * 2, shown)


def test_the_next_command_can_be_typed() -> None:
    said = next_command("evaluate", run="my runs/a", data="val", tracking__uri=None)
    assert said == "next     retinaray evaluate --run 'my runs/a' --data val"
    assert next_command("a", b__c="d").endswith(" --b.c d")


class Empty(BaseModel):
    """No option."""


def test_a_verb_prints_plain_text_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame-open")

    def main(config: Empty) -> None:
        print("class \x1b[31mcat")
        raise RuntimeError("the server said sesame-open \x1b[0m")

    for arguments in ([], ["--debug"]):
        with pytest.raises(SystemExit):
            run_verb(Empty, main, description="", argv=arguments)
        printed = capsys.readouterr()
        assert printed.out == "class \\x1b[31mcat\n"
        assert "\x1b" not in printed.err and "sesame-open" not in printed.err
        assert "the server said ***" in printed.err
