from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from cluster.runs.names import Name, WorkflowName

NAME, WORKFLOW_NAME = TypeAdapter(Name), TypeAdapter(WorkflowName)


@pytest.mark.parametrize("name", ["a", "cells", "Cells-2.1_b", "0", "x" * 100])
def test_names(name: str) -> None:
    assert NAME.validate_python(name) == name


@pytest.mark.parametrize(
    "name", ["", "my cells", "été", "-a", ".a", "a/b", "a\n", "x" * 101, "a:b", "_a"]
)
def test_what_is_no_name_is_refused_in_words(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        NAME.validate_python(name)
    (problem,) = caught.value.errors()
    assert problem["msg"] == (
        f"Value error, {name!r} must have only letters (a to z), digits, '.', '_' and '-', at most"
        " 100, and begin with a letter or digit, such as my-cells"
    )


def test_the_name_of_a_workflow_leaves_room_for_the_fingerprint() -> None:
    assert WORKFLOW_NAME.validate_python("x" * 80)
    with pytest.raises(ValidationError, match="at most 80"):
        WORKFLOW_NAME.validate_python("x" * 81)
