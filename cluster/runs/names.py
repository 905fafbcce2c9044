"""Names of runs and registered models: each is a folder, a part of a URL and a name in MLflow."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

from pydantic import AfterValidator

MOST = 100
MOST_OF_A_WORKFLOW = 80
"""The names of its outputs have a fingerprint behind this one."""


def _check(name: str, *, most: int) -> str:
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{most - 1}}}", name):
        raise ValueError(
            f"{name!r} must have only letters (a to z), digits, '.', '_' and '-', at most {most},"
            " and begin with a letter or digit, such as my-cells"
        )
    return name


Name = Annotated[str, AfterValidator(partial(_check, most=MOST))]
WorkflowName = Annotated[str, AfterValidator(partial(_check, most=MOST_OF_A_WORKFLOW))]
RULE = f"At most {MOST} letters, digits, . _ -"
"""For descriptions."""
