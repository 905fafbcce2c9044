"""The drawing of the house, held: who may import whom, which floor knows which library, how long a
file may grow.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("detector", "cluster", "tune", "pipelines")
"""From the ground up: a floor imports itself and those before it."""
SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]

MLFLOW_FILES = {
    "cluster/tracking/client.py",
    "cluster/tracking/registry.py",
    "cluster/tracking/pyfunc_model.py",
}
FORBIDDEN_IN_DETECTOR = {
    "ray", "mlflow", "boto3", "botocore", "pyarrow", "requests", "urllib", "http", "socket", "fsspec", "optuna", "pydantic_settings", "yaml",
}  # fmt: skip
DETECTOR_MAY_USE = {
    "hotcoco",
    "matplotlib",
    "numpy",
    "PIL",
    "pydantic",
    "safetensors",
    "simplejpeg",
    "torch",
    "torchvision",
}


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) for each imported thing, wherever in the file: `import a.b` -> ("a.b", ""),
    `from a import b` -> ("a", "b").
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module, _ in imports(path)}


def tracked_files() -> list[Path]:
    """What git holds or would take; without git, as in an unpacked release, every file outside the
    ignored folders.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return [
            ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()
        ]
    left_out = {
        ".venv",
        ".git",
        "runs",
        "data",
        "__pycache__",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
    }
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not left_out & set(path.relative_to(ROOT).parts)
    ]


def test_there_is_a_house():
    assert {Path(name).parts[0] for name in NAMES} == set(FLOORS)


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_down_only(name):
    floor = Path(name).parts[0]
    allowed = FLOORS[: FLOORS.index(floor) + 1]
    upwards = roots(ROOT / name) & set(FLOORS) - set(allowed)
    assert not upwards, f"{name} imports {upwards} from above"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("detector/")])
def test_the_detector_knows_no_machines(name):
    path = ROOT / name
    assert not roots(path) & FORBIDDEN_IN_DETECTOR
    strangers = roots(path) - DETECTOR_MAY_USE - {"detector"} - sys.stdlib_module_names
    assert not strangers, f"{name} imports {strangers}"
    if name != "detector/config.py":
        assert "pydantic" not in roots(path), (
            "only config.py holds settings; functions take plain arguments"
        )
    reads = [
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert not reads, f"{name} reads the environment"


@pytest.mark.parametrize("name", NAMES)
def test_mlflow_stays_in_its_three_files(name):
    if name not in MLFLOW_FILES:
        assert not {"mlflow", "mlflow_skinny"} & roots(ROOT / name)


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_tune_is_not_imported_under_our_packages_name(path):
    assert ("ray", "tune") not in set(imports(path)), (
        "from ray.tune import Tuner: the name `tune` is ours"
    )


def test_no_verb_shadows_a_package():
    """`python pipelines/x.py` puts pipelines/ first on the path: a file there hides any top-level
    module of its name.
    """
    installed = {name.lower() for name in importlib.metadata.packages_distributions()}
    taken = installed | {name.lower() for name in sys.stdlib_module_names} | set(FLOORS) | {"tests"}
    # An editable install of this project registers the floors themselves, nothing of what is inside
    # them.
    hidden = {path.stem.lower() for path in (ROOT / "pipelines").glob("*.py")} & taken
    assert not hidden


def test_no_file_is_named_after_nothing():
    vague = {"utils", "util", "misc", "common", "helpers", "helper", "base", "core"}
    assert not [name for name in NAMES if Path(name).stem in vague]


def test_tests_are_no_packages():
    # A tests/tune/__init__.py would become the package `tune`.
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not [
        path for path in TESTS if path.parent.name == "benchmarks" and path.name.startswith("test_")
    ]


# The door of all verbs, and the verbs as stages of `run`; every other file in pipelines/ is one
# verb.
SHARED_BY_VERBS = {"pipelines/command_line.py", "pipelines/workflow.py"}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_no_source_file_is_long(name):
    assert lines(ROOT / name) <= 400


def test_most_source_files_are_short():
    assert statistics.median(lines(path) for path in SOURCES) < 200


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if name.startswith("pipelines/") and name not in SHARED_BY_VERBS],
)
def test_a_verb_is_a_table_of_contents(name):
    path = ROOT / name
    assert 40 <= lines(path) <= 100
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python -m pipelines.{path.stem}" in docstring, "the docstring is the command to type"


@pytest.mark.parametrize("name", NAMES)
def test_no_function_is_long(name):
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 70, f"{name}: {node.name} has {length} lines"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_why_it_exists(name):
    tree = ast.parse((ROOT / name).read_text())
    assert ast.get_docstring(tree), f"{name} has no docstring"
    assert any(
        module == "__future__" and thing == "annotations" for module, thing in imports(ROOT / name)
    )


def test_nothing_tracked_knows_a_machine_or_an_index():
    # The patterns are put together here, so that this file does not hold what it looks for.
    machine = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("work", "root", "home(?!/me\\b)")) + r")/")
    index = re.compile(
        "|".join(
            (
                "pypi" + r"\.org",
                "files" + r"\.pythonhosted",
                "--(?:extra-)?" + "index-url",
                "--find" + "-links",
            )
        ),
        re.IGNORECASE,
    )
    found = []
    for path in tracked_files():
        if path.suffix in (".png", ".jpg", ".jpeg", ".parquet"):
            continue
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
        ):
            # uv notes the option that kept the index out of the lock file.
            if machine.search(line) or index.search(line.replace("--no-emit-" + "index-url", "")):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found


def test_the_readme_names_every_room():
    _, tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## What is where")
    blocks = dict(re.findall(r"^ {4}(\w+)/(.*?)(?=^ {4}\S|^\S)", tree, re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"(\w+\.py)", blocks["detector"])) == {
        path.name for path in (ROOT / "detector").glob("*.py")
    }
    assert set(re.findall(r"^ {6}(\w+)/", blocks["cluster"], re.MULTILINE)) == {
        path.parent.name for path in (ROOT / "cluster").glob("*/__init__.py")
    }


def test_the_lock_is_ours_and_hashed():
    # A uv.lock would make MLflow and Ray resolve an environment of their own.
    assert not (ROOT / "uv.lock").exists()
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)==", lock, re.MULTILINE)
    assert len(pinned) > 50
    assert all(
        re.search(rf"^{re.escape(name)}==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE)
        for name in pinned
    )


def test_the_lock_holds_what_the_project_asks_for():
    text = (ROOT / "pyproject.toml").read_text()
    lock = set(
        re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    asked = re.findall(r'"([A-Za-z0-9_-]+)(?:\[[a-z,]+\])?>=', text)
    assert len(asked) > 12 and set(asked) <= lock


def test_every_floor_is_packaged():
    (packages,) = re.findall(
        r"^include = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert tuple(name for name in re.findall(r'"([\w.*]+)"', packages) if "*" not in name) == FLOORS
