"""All verbs as one command: `retinaray train ...`, or `python -m pipelines train ...`."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
import tomllib
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
VERBS = (
    *("prepare", "shards", "train", "sweep", "evaluate"),
    *("register", "promote", "approve", "rollback", "history", "versions"),
    *("predict", "export", "run", "preflight"),
)
"""In the order in which they are used."""


def main() -> None:
    """Run the verb that the first argument names. Ends with the exit code
    of the verb, 2 for a verb that does not exist.
    """
    verb, *rest = sys.argv[1:] or ["help"]
    if verb in ("help", "--help", "-h"):
        if not rest:
            print(overview())
            return
        verb, rest = rest[0], ["--help", *rest[1:]]
    if verb in ("version", "--version"):
        print(f"retinaray {version()}")
        return
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        remedy = f"did you mean {close[0]}?" if close else f"the verbs are {', '.join(VERBS)}"
        print(f"error: {verb!r} is no verb; {remedy}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"retinaray {verb}", *rest]
    importlib.import_module(f"pipelines.{verb}").run()


def overview() -> str:
    """Every verb with its first sentence, read from its file: importing all of them would take
    more than a second.
    """
    lines = ["usage: retinaray VERB [--option VALUE ...]", ""]
    for verb in VERBS:
        docstring = ast.get_docstring(ast.parse((HERE / f"{verb}.py").read_text("utf-8"))) or ""
        said = " ".join(docstring.partition("\n\n")[0].split())
        lines.append(f"  {verb:<9} {said}")
    lines += [
        "",
        "retinaray help VERB shows commands to type and the options that matter first,",
        "retinaray help VERB all shows every option. A first run: retinaray run FOLDER",
    ]
    return "\n".join(lines)


def version() -> str:
    """Of the installed package, or of the checkout where nothing is installed."""
    try:
        return metadata.version("retinaray")
    except metadata.PackageNotFoundError:
        project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))
        return project["project"]["version"]


if __name__ == "__main__":
    main()
