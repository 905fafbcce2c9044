"""Names that MLflow takes, made of names that people choose: of classes, sources and machines.

MLflow takes 250 letters, digits and _-. :/ at most, and no name that would change if it were a
path, such as `..` or `a//b`. A name that it takes stays as it is. Any other one keeps its readable
part and gets a dash and 8 hexadecimal digits of its sha256: `a+b` becomes `a_b-300273da`, and `a*b`
becomes `a_b-15eb0a79`. So do names that some databases take for one: `Dog`, `dog` and `Dog `.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

LONGEST = 250
_DIGITS = 8
_REFUSED = re.compile(r"[^\w\-. :/]")


def mlflow_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> its name in MLflow. Names that could be confused must be given together."""
    given = list(dict.fromkeys(names))
    alike = Counter(_folded(name) for name in given)
    return {
        name: name if _is_valid(name) and alike[_folded(name)] == 1 else _marked(name)
        for name in given
    }


def _is_valid(name: str) -> bool:
    return (
        0 < len(name) <= LONGEST
        and not _REFUSED.search(name)
        and posixpath.normpath(name) == name
        and name != "."
        and not name.startswith(("..", "/"))
    )


def _folded(name: str) -> str:
    """What is left of a name in a database that ignores case, accents and blanks at the end."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(c for c in letters if not unicodedata.combining(c)).casefold().rstrip()


def _marked(name: str) -> str:
    digits = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    parts = [part.strip(". ") for part in _REFUSED.sub("_", name).split("/")]
    readable = "/".join(part or "_" for part in parts)
    return f"{readable[: LONGEST - _DIGITS - 1]}-{digits}"
