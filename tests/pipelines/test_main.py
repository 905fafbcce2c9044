"""All verbs as one command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.__main__ import VERBS
from pipelines.command_line import all_verbs

ROOT = Path(__file__).parents[2]


def type_command(*words: str, folder: Path = ROOT) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_every_verb_is_in_the_overview_with_a_sentence() -> None:
    code, out, err = type_command()
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert list(lines) == list(VERBS) == list(all_verbs())
    assert all(line.endswith(".") and len(line.split()) > 4 for line in lines.values())
    assert type_command("--help")[1] == type_command("help")[1] == out


def test_a_verb_takes_its_options_and_ends_with_its_exit_code(tmp_path: Path) -> None:
    code, out, err = type_command("shards", "--data", "nowhere", folder=tmp_path)
    assert (code, out) == (2, "") and f"{tmp_path}/nowhere" in err
    code, out, _ = type_command("help", "shards")
    assert code == 0 and out.startswith("usage: retinaray shards [--config FILE] --data ...")
    assert type_command("shards", "--help")[1] == out
    assert "--loss.gamma" in type_command("help", "train", "loss")[1]


@pytest.mark.parametrize(("typed", "answer"), [("trai", "did you mean train?"), ("x", "prepare,")])
def test_a_verb_that_does_not_exist_is_answered(typed: str, answer: str) -> None:
    code, out, err = type_command(typed)
    assert (code, out) == (2, "") and f"error: {typed!r} is no verb; " in err and answer in err


def test_the_version_is_that_of_the_project() -> None:
    assert f'version = "{type_command("--version")[1].split()[1]}"' in (
        ROOT / "pyproject.toml"
    ).read_text("utf-8")
