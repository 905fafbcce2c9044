from __future__ import annotations

from cluster.errors import instead_of, joined


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
