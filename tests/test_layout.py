"""Rules of the house that no linter knows: sizes of files and functions, names, what is packaged.

Which module may import which is in pyproject.toml (import-linter) and part of `make check`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import statistics
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("detector", "cluster", "tune", "pipelines")
SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
ROOMS = sorted(path.parent.name for path in (ROOT / "cluster").glob("*/__init__.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 70
SHARED_BY_VERBS = {
    "__main__.py",
    "command_line.py",
    "comparison_run.py",
    "data_section.py",
    "entry_flags.py",
    "evaluate_config.py",
    "evaluation_run.py",
    "evaluation_set.py",
    "export_run.py",
    "folder_run.py",
    "options.py",
    "predict_config.py",
    "promotion_run.py",
    "refusals.py",
    "replica_options.py",
    "scored_detector.py",
    "run_config.py",
    "scoring_inputs.py",
    "scoring_run.py",
    "training_plan.py",
    "terminal.py",
    "training_run.py",
    "view_options.py",
    "worker_range.py",
    "workflow.py",
}
"""Files of pipelines/ that are no verb."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def tracked_files() -> list[Path]:
    """What git tracks or would track; without git, as in an unpacked release, every file outside
    the ignored folders.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / entry for entry in listed.stdout.split("\0") if entry]
        return [path for path in paths if path.is_file()]
    ignored = {".venv", ".git", "runs", "data", "__pycache__", ".pytest_cache", ".ruff_cache"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not ignored & set(path.relative_to(ROOT).parts)
    ]


def test_every_room_says_what_is_in_it_and_holds_nothing_else():
    for room in ROOMS:
        body = parsed(ROOT / "cluster" / room / "__init__.py").body
        assert ast.get_docstring(parsed(ROOT / "cluster" / room / "__init__.py")), room
        assert all(isinstance(node, ast.Expr | ast.ImportFrom) for node in body), room
    assert {path.name for path in (ROOT / "cluster").glob("*.py")} == {"errors.py"}


def test_every_room_is_in_a_contract():
    (rooms,) = (
        contract
        for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == ["cluster"]
    )
    listed = {room.strip() for layer in rooms["layers"] for room in layer.split("|")}
    assert listed == {*ROOMS, "errors"}


def test_the_detector_does_not_read_the_environment():
    for path in (ROOT / "detector").glob("*.py"):
        names = {node.attr for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)}
        assert not names & {"environ", "getenv"}, name(path)


def test_imports_are_absolute_and_ray_tune_never_hides_our_tune():
    for path in SOURCES + TESTS:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name(path)}: a relative import"
                hides = node.module == "ray" and "tune" in {alias.name for alias in node.names}
                assert not hides, f"{name(path)}: write `from ray.tune import Tuner`"


def test_no_verb_has_the_name_of_an_installed_module():
    """`python pipelines/x.py` puts pipelines/ first on the path, where x hides any other x."""
    installed = {module.lower() for module in importlib.metadata.packages_distributions()}
    taken = installed | {module.lower() for module in sys.stdlib_module_names}
    # An editable install registers our own floors, not the modules inside them.
    verbs = {path.stem.lower() for path in (ROOT / "pipelines").glob("*.py")} - {"__init__"}
    assert not verbs & (taken | set(FLOORS) | {"tests"})


def test_no_file_has_a_name_that_says_nothing():
    vague = {"utils", "util", "misc", "common", "helpers", "helper", "base", "core"}
    assert not [name(path) for path in SOURCES if path.stem in vague]


def test_tests_are_no_packages():
    # A tests/tune/__init__.py would become the package `tune`.
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not list((ROOT / "tests/benchmarks").glob("test_*.py"))


def test_files_and_functions_are_short():
    for path in SOURCES:
        assert lines(path) <= MOST_LINES, f"{name(path)} has {lines(path)} lines"
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= MOST_LINES_OF_A_FUNCTION, f"{name(path)}: {node.name} {length}"
    assert statistics.median(lines(path) for path in SOURCES) < 200


def test_a_verb_shows_the_command_to_type():
    for path in (ROOT / "pipelines").glob("*.py"):
        if path.name not in SHARED_BY_VERBS:
            docstring = ast.get_docstring(parsed(path)) or ""
            assert f"retinaray {path.stem}" in docstring, name(path)
            assert lines(path) <= 150, f"{name(path)}: a verb parses, connects, calls, prints"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_file_says_why_it_exists(path: Path):
    assert ast.get_docstring(parsed(path)), f"{name(path)} has no docstring"
    imported = {node.module for node in parsed(path).body if isinstance(node, ast.ImportFrom)}
    assert "__future__" in imported, f"{name(path)} lacks `from __future__ import annotations`"


def test_no_tracked_file_names_a_machine_or_a_package_index():
    # The patterns are put together here, so that this file does not match itself.
    folders = "|".join(("work", "root", "home(?!/me\\b)"))
    machine = re.compile(rf"(?<![\w.~-])/(?:{folders})/")
    hosts = ("pypi" + r"\.org", "files" + r"\.pythonhosted", "--(?:extra-)?" + "index-url")
    index = re.compile("|".join((*hosts, "--find" + "-links")), re.IGNORECASE)
    found = []
    for path in tracked_files():
        if path.suffix in (".png", ".jpg", ".jpeg", ".parquet"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            # uv notes in the lock file the option that kept the index out of it.
            shown = line.replace("--no-emit-" + "index-url", "")
            if machine.search(line) or index.search(shown):
                found.append(f"{name(path)}:{number}: {line.strip()[:100]}")
    assert not found


def test_the_lock_pins_every_requirement_by_hash():
    # A uv.lock would make MLflow and Ray resolve an environment of their own.
    assert not (ROOT / "uv.lock").exists()
    lock = (ROOT / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([A-Za-z0-9_.-]+)==", lock, re.MULTILINE))
    hashed = set(re.findall(r"^([A-Za-z0-9_.-]+)==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE))
    assert pinned == hashed
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["dev"]]
    asked = {re.match(r"[A-Za-z0-9_-]+", requirement).group() for requirement in wanted}
    assert len(asked) > 20 and asked <= pinned


def test_every_floor_and_room_is_packaged_with_its_types():
    setuptools = PYPROJECT["tool"]["setuptools"]
    included = set(setuptools["packages"]["find"]["include"])
    assert included == {*FLOORS, "cluster.*"}
    for floor in FLOORS:
        assert (ROOT / floor / "py.typed").is_file()
    assert "py.typed" in setuptools["package-data"]["*"]
