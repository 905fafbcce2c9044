from __future__ import annotations

from cluster.errors import joined


def test_a_question_mark_ends_a_part_of_a_message_and_else_a_semicolon_does() -> None:
    assert joined("a: is absent", "give it") == "a: is absent; give it"
    assert joined("did you mean b?", "and 2 more", "see c") == "did you mean b? and 2 more; see c"
