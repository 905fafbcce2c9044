from __future__ import annotations

import pytest

from cluster.errors import has_secret, instead_of, joined, redacted


def test_a_question_mark_ends_a_part_of_a_message_and_else_a_semicolon_does() -> None:
    assert joined("a: is absent", "give it") == "a: is absent; give it"
    assert joined("did you mean b?", "and 2 more", "see c") == "did you mean b? and 2 more; see c"


def test_a_wrong_name_is_answered_with_close_ones_and_all_that_there_are() -> None:
    assert instead_of("cels", ["cells", "dogs"]) == "did you mean cells? there are cells, dogs"
    assert instead_of("CELLS", ["Cells"]) == "did you mean Cells? there are Cells"
    assert instead_of("x", ["cells", "dogs"]) == "there are cells, dogs"
    assert instead_of("x", []) == "there are none"
    # Of 1,200 names ten are shown.
    names = [f"n{number:04d}" for number in range(1200)]
    assert instead_of("?", names).endswith("n0009 and 1,190 more")


CANARY = "Tr0ub4dor"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:Tr0ub4dor@host/a: no", "at https://***@host/a: no"),
        ("https://me:a/Tr0ub4dor@host:5000/a", "https://***@host:5000/a"),
        ("https://me:a@Tr0ub4dor@host", "https://***@host"),
        ("postgresql://me:Tr0ub4dor@host/db", "postgresql://***@host/db"),
        ("s3://Tr0ub4dor:x@bucket/key", "s3://***@bucket/key"),
        ("'http://h/a?x=1&token=Tr0ub4dor'", "'http://h/a?x=1&token=***'"),
        ("http://h/a?X-Amz-Signature=Tr0ub4dor&b=2", "http://h/a?X-Amz-Signature=***&b=2"),
        ("http://h/a?sig=Tr0ub4dor", "http://h/a?sig=***"),
        ('{"uri": "https://me:Tr0ub4dor@h"}', '{"uri": "https://***@h"}'),
        ("header Bearer Tr0ub4dor-of-mlflow is wrong", "header Bearer *** is wrong"),
    ],
)
def test_no_secret_is_left_in_a_text(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "Tr0ub4dor-of-mlflow")
    assert redacted(text) == shown and CANARY not in shown and has_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/2024@noon/a.jpg: is damaged",
        "http://localhost:9000 answers; mail me@host",
        "https://host/a?page=2&monkey",
        "a.jpg: line 3 of /home/me@work/list.csv",
        "the file RAY_AUTH_TOKEN_PATH names, /etc/token-of-ray, is not there",
        "keys go into AWS_SECRET_ACCESS_KEY",
    ],
)
def test_a_text_without_a_secret_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/etc/token-of-ray")
    # Too short to be told from a part of a word.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "there")
    assert redacted(text) == text and not has_secret(text)
