"""What the documents say exists: files, tests, modules, options, verbs, rooms, links."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cluster.formats.read import READERS
from pipelines.options import ENVIRONMENT_PREFIX, all_fields, section_of
from tests.support.documents import ROOT, anchors, blocks, documents, inline_code, prose

DOCUMENTS = [str(path.relative_to(ROOT)) for path in documents()]
FLOORS = ("detector", "cluster", "tune", "pipelines")
FOREIGN = ("ray", "pip", "uv", "mlflow", "curl", "git", "apt-get", "pytest", "make", "aws")
"""First words of commands whose options are not ours."""
MAPPINGS = ("sampling.source_weights.", "sweep.space.")
"""Options of which each entry is a flag of its own."""
HISTORY = "CHANGELOG.md"
"""Names what no longer exists, too."""


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The option names of each verb, without the leading dashes."""
    common = {"config", "debug", "help"}
    return {
        verb.name: common
        | {name for name, field in all_fields(verb.config).items() if not section_of(field)}
        for verb in generator().verbs()
    }


def script_options() -> set[str]:
    """Options of the scripts that the documents name beside the verbs."""
    scripts = [*(ROOT / "tests").glob("benchmarks/*.py"), *(ROOT / "tests").glob("support/*.py")]
    text = "".join(path.read_text() for path in [*scripts, ROOT / "cluster/prepare/synthetic.py"])
    # One script makes its flags from a list of names and reads them as `options.name`.
    read = {name.replace("_", "-") for name in re.findall(r"\boptions\.(\w+)", text)}
    return read | set(re.findall(r'"--([a-z][a-z0-9-]*)"', text))


def tracked() -> set[str]:
    """The files of the project, by their path from its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    return {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()}


def code(name: str) -> Iterator[tuple[str, str]]:
    """(place, text) of all code in a document: inline, and commands of its blocks."""
    for line, text in inline_code(ROOT / name):
        yield f"{name}:{line}", text
    for block in blocks(ROOT / name):
        for command in block.commands() if block.language == "sh" else [block.text]:
            yield block.name, command


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1500


def test_the_reference_is_current():
    reference = generator()
    written = reference.TARGET.read_text(encoding="utf-8")
    assert written == reference.render(), f"renew it: {reference.COMMAND}"


def test_the_readme_names_every_verb_with_its_command(options):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [verb for verb in options if f"\n| `{verb}` |" not in text] == []
    assert [verb for verb in options if f"\nretinaray {verb} " not in text] == []


def test_the_readme_leads_to_every_document():
    reached, new = set(), {"README.md"}
    while new:
        reached |= new
        links = {
            str((ROOT / name).parent.joinpath(target).resolve().relative_to(ROOT))
            for name in new
            for target in re.findall(r"\]\(([^)#:]+\.md)[^):]*\)", (ROOT / name).read_text())
        }
        new = links - reached
    assert set(DOCUMENTS) - reached == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", prose(ROOT / name)):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / name).parent / place if place else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_options_exist(name, options):
    anywhere = set().union(*options.values()) | script_options()
    wrong = []
    for place, text in code(name):
        if text.split()[0] in FOREIGN:
            continue
        # In an example of another program.
        text = re.sub(r"ray job submit .*? -- ", "", text)
        verb = re.search(r"retinaray (\w+) --", text)
        known = options.get(verb[1], set()) if verb else anywhere
        wrong += [
            f"{place}: --{option}"
            for option in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", text)
            if option not in known and not option.startswith(MAPPINGS)
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_variables_exist(name, options):
    names = {option.replace(".", "__").upper() for known in options.values() for option in known}
    names.add("SECTION__FIELD")
    written = re.findall(rf"{ENVIRONMENT_PREFIX}(\w*)", (ROOT / name).read_text())
    # RETINARAY_ alone is the prefix itself.
    assert [variable for variable in written if variable and variable not in names] == []


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != HISTORY])
def test_files_exist(name):
    """Paths into the tree, and names of Python files and documents without a folder."""
    files = tracked()
    bare = {path.rsplit("/", 1)[-1] for path in files}
    folders = {str(parent) for path in files for parent in Path(path).parents}
    top = {path.split("/")[0] for path in files if "/" in path}
    wrong = []
    for place, text in code(name):
        for word in re.findall(r"[\w.@/*-]+", text):
            word = word.rstrip("/.")
            if "/" in word and word.split("/")[0] in top:
                there = any(ROOT.glob(word)) if "*" in word else word in files | folders
            elif re.fullmatch(r"[\w-]+\.(py|md)", word):
                there = word in bare
            else:
                continue
            if not there:
                wrong.append(f"{place}: {word}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != HISTORY])
def test_tests_and_modules_exist(name):
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    wrong = []
    for place, text in code(name):
        for word in re.findall(r"(?<![\w/])test_\w+(?!\w|\.py|/)", text):
            if f"def {word}(" not in tests and not any((ROOT / "tests").rglob(f"{word}.py")):
                wrong.append(f"{place}: {word}")
        for word in re.findall(rf"(?<![\w./@-])(?:{'|'.join(FLOORS)})(?:\.[A-Za-z_]\w*)+", text):
            if not is_defined(word) and not re.fullmatch(r"\w+\.(safetensors|onnx)", word):
                wrong.append(f"{place}: {word}")
    assert not wrong, "\n".join(wrong)


def is_defined(dotted: str) -> bool:
    """Whether `cluster.storage.files.read_json` is a module, or a name that its module defines."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end])
        if path.is_dir() and end == len(parts):
            return True
        if path.with_suffix(".py").is_file():
            text, names = path.with_suffix(".py").read_text(), parts[end:]
            return all(
                re.search(rf"^\s*(?:def|class) {name}\b|^\s*{name}\b.*[=:]", text, re.MULTILINE)
                for name in names
            )
    return False


def test_pre_commit_runs_what_make_check_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    gate = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert [hook["entry"] for hook in hooks] == gate
    assert {hook["language"] for hook in hooks} == {"system"}


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert str(citation["version"]) == version
    assert f"\n## {version}\n" in (ROOT / HISTORY).read_text()


def test_every_annotation_format_is_explained() -> None:
    page = (ROOT / "docs/how-to/your-data.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(READERS)
