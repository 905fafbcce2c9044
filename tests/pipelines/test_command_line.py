"""The command line of every verb: which source wins, how it refuses in words, and exit codes."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.errors import DataError, GateError, InterruptedRun, PlainError, UsageError
from pipelines import refusals
from pipelines.command_line import all_verbs, parse, read_yaml, run_verb
from pipelines.options import all_fields, help_text, section_of

ROOT = Path(__file__).parents[2]
VERBS = sorted(
    path.stem
    for path in (ROOT / "pipelines").glob("*.py")
    if "    run_verb(" in path.read_text() and path.stem != "command_line"
)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """Shard sets."""

    train: str = Field(description="URI of the set to train on")
    val: str = Field(description="URI of the set to score on")
    share: float = Field(1.0, gt=0, le=1, description="share of the images that are used")


class Training(Section):
    epochs: int = Field(3, ge=1, le=100, description="passes over the images")
    rate: float = Field(0.5, gt=0, description="peak rate")
    kind: Literal["sgd", "adamw"] = Field("sgd", description="update rule")
    amp: bool = Field(True, description="bfloat16 or not")
    scales: tuple[float, ...] = Field((1.0, 2.0), description="factors")
    crops: tuple[tuple[int, int], ...] = Field((), description="windows")
    weights: dict[str, float] = Field({}, description="weight of each source")

    @field_validator("rate")
    @classmethod
    def not_seven(cls, rate: float) -> float:
        if rate == 7:
            raise ValueError("must not be 7, of all numbers")
        return rate

    @model_validator(mode="after")
    def consistent(self) -> Training:
        if self.kind == "adamw" and self.epochs > 50:
            raise ValueError(f"training.epochs {self.epochs}: adamw has had enough after 50")
        return self


class Config(Section):
    """Not shown: the verb gives its own description."""

    name: str = Field("run", min_length=1, description="name of the run")
    note: str | None = Field(None, description="a remark")
    data: Data
    training: Training = Field(Training(), description="how long and how fast")


GIVEN = ["--data.train", "a", "--data.val", "b"]
DAY_AND_DOTS = {"day": 2.0, "a.b": 0.5}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("RETINARAY_")]:
        monkeypatch.delenv(name)


def yaml_file(folder: Path, text: str) -> list[str]:
    (folder / "config.yaml").write_text(text)
    return ["--config", str(folder / "config.yaml")]


def refusal(argv: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        parse(Config, argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leave(main, argv: list[str] | None = None) -> int:
    with pytest.raises(SystemExit) as caught:
        run_verb(Config, main, description="A verb.", argv=GIVEN if argv is None else argv)
    return caught.value.code


def test_defaults_then_yaml_then_environment_then_flags(tmp_path, monkeypatch):
    assert parse(Config, GIVEN).training.epochs == 3
    from_file = [
        *yaml_file(tmp_path, "training: {epochs: 4, rate: 0.25}\ndata: {train: x, val: y}\n")
    ]
    config = parse(Config, from_file)
    assert (
        config.training.epochs,
        config.training.rate,
        config.training.kind,
        config.data.train,
    ) == (4, 0.25, "sgd", "x")
    monkeypatch.setenv("RETINARAY_TRAINING__EPOCHS", "5")
    monkeypatch.setenv("RETINARAY_NAME", "from-environment")
    config = parse(Config, from_file)
    assert (config.training.epochs, config.training.rate, config.name) == (
        5,
        0.25,
        "from-environment",
    )
    config = parse(Config, [*from_file, "--training.epochs", "6", "--data.val", "z"])
    # One field of a section leaves the others of it as the weaker source gave them.
    assert (config.training.epochs, config.training.rate, config.data.train, config.data.val) == (
        6,
        0.25,
        "x",
        "z",
    )


def test_the_config_is_the_plain_frozen_class():
    config = parse(Config, GIVEN)
    assert type(config) is Config and type(config.training) is Training
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--training.scales", "1,2,4"], "scales", (1.0, 2.0, 4.0)),
        (["--training.scales", "[0.5]"], "scales", (0.5,)),
        (["--training.crops", "[[1,2],[3,4]]"], "crops", ((1, 2), (3, 4))),
        (["--training.weights", '{"day": 2}'], "weights", {"day": 2.0}),
        (["--training.weights", "day=2,night=0.5"], "weights", {"day": 2.0, "night": 0.5}),
        (["--training.weights.day", "2", "--training.weights.a.b=0.5"], "weights", DAY_AND_DOTS),
        (
            ["--training.weights", '{"day": 9, "a.b": 0.5}', "--training.weights.day=2"],
            "weights",
            DAY_AND_DOTS,
        ),
        (["--training.amp", "false"], "amp", False),
        (["--training.epochs=7"], "epochs", 7),
        (["--training.rate", "1e-3"], "rate", 0.001),
        (["--training.epochs", "1", "--training.epochs", "2"], "epochs", 2),
    ],
)
def test_forms_of_values(argv, name, value):
    assert getattr(parse(Config, GIVEN + argv).training, name) == value


def test_yaml_numbers_with_exponent_are_numbers(tmp_path):
    # YAML 1.1 takes 1e-3 without a point for text.
    assert (
        parse(Config, [*yaml_file(tmp_path, "training: {rate: 1e-3}\n"), *GIVEN]).training.rate
        == 0.001
    )


def test_an_empty_yaml_file_is_no_settings(tmp_path):
    assert parse(Config, [*yaml_file(tmp_path, "# nothing yet\n"), *GIVEN]) == parse(Config, GIVEN)


def test_unknown_flags_are_refused_with_a_suggestion():
    assert "--training.epoch is not an option; did you mean --training.epochs" in refusal(
        [*GIVEN, "--training.epoch", "3"]
    )
    # No abbreviations: a name that gets a longer sister would change its meaning.
    assert "--training.epo" in refusal([*GIVEN, "--training.epo=3"])
    assert "there are name, note, data, training" in refusal([*GIVEN, "--zzz", "3"])


def test_unknown_yaml_names_are_refused_with_file_and_suggestion(tmp_path):
    message = refusal([*yaml_file(tmp_path, "training: {epoks: 4}\n"), *GIVEN])
    assert (
        "training.epoks" in message
        and "config.yaml" in message
        and "did you mean training.epochs" in message
    )
    assert "trainin (in" in refusal([*yaml_file(tmp_path, "trainin: {epochs: 4}\n"), *GIVEN])


def test_unknown_environment_names_in_a_section_are_refused(monkeypatch):
    monkeypatch.setenv("RETINARAY_TRAINING__EPOKS", "5")
    assert (
        "TRAINING__EPOKS: is no setting of any verb; did you mean RETINARAY_TRAINING__EPOCHS?"
        in (refusal(GIVEN))
    )


def test_environment_of_another_verbs_section_does_not_matter(monkeypatch):
    monkeypatch.setenv("RETINARAY_TRACKING__URI", "http://localhost:5000")
    assert parse(Config, GIVEN).name == "run"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--training.epochs", "0"],
            ["training.epochs '0'", "greater than or equal to 1", "passes over the images"],
        ),
        (["--training.epochs", "2.5"], ["training.epochs '2.5': must be integer, at least 1"]),
        (["--training.rate", "fast"], ["training.rate 'fast'", "number", "peak rate"]),
        (["--training.kind", "lion"], ["training.kind 'lion'", "'sgd' or 'adamw'"]),
        (["--training.amp", "perhaps"], ["training.amp 'perhaps': must be true | false"]),
        (["--training.scales", "1,wide"], ["training.scales 'wide'", "number"]),
        (
            ["--training.scales", "nan,1"],
            ["--training.scales nan,1: must be numbers with commas between"],
        ),
        (
            ["--training.scales=1,inf"],
            ["--training.scales 1,inf: must be numbers with commas between"],
        ),
        (
            ["--training.weights", "day:2"],
            ["--training.weights day:2: must be JSON, numbers by name such as"],
        ),
        (
            ["--training.weights", "5"],
            ["--training.weights 5: must be JSON, numbers by name such as"],
        ),
        (
            ['--training.weights={"day": 2'],
            ['--training.weights {"day": 2: must be JSON, numbers by name such as'],
        ),
        (
            ["--training.weights", '{"day": "much"}'],
            ["training.weights 'much' of 'day': must be a valid number", "weight of each source"],
        ),
        (
            ["--training.weights.day", "much"],
            ["training.weights 'much' of 'day': must be a valid number", "weight of each source"],
        ),
        (["--training.weights.day"], ["--training.weights.day needs a value"]),
        (["--training.weights.day", "--name", "x"], ["--training.weights.day needs a value"]),
        (["--training.weights.", "2"], ["--training.weights. is not an option"]),
        (["--training.rate", "7"], ["training.rate: must not be 7, of all numbers"]),
        (
            ["--training.kind", "adamw", "--training.epochs", "60"],
            ["training.epochs 60: adamw has had enough after 50"],
        ),
        (["--name", ""], ["name ''", "at least 1 character"]),
        (["--training", "5"], ["training: is a section of fields (training.epochs"]),
        (["--name"], ["--name needs a value"]),
        (["stray"], ["unrecognized arguments stray"]),
        (["-x"], ["unrecognized arguments -x"]),
    ],
)
def test_bad_values_are_named_with_value_rule_and_remedy(argv, words):
    message = refusal(GIVEN + argv)
    assert all(word in message for word in words), message
    assert "--help" in message


def test_entries_of_several_sources_are_one_mapping(tmp_path, monkeypatch):
    flags = [*yaml_file(tmp_path, "training: {weights: {a: 1, b: 1, c: 1}}\n"), *GIVEN]
    monkeypatch.setenv("RETINARAY_TRAINING__WEIGHTS", '{"b": 2, "c": 2}')
    weights = parse(Config, [*flags, "--training.weights.c", "3"]).training.weights
    assert weights == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_of_two_lists_the_one_that_is_wrong_is_named():
    message = refusal([*GIVEN, "--training.crops", "[[1,2]]", "--training.scales", "nan"])
    assert message.startswith("--training.scales nan: must be numbers") and "crops" not in message


def test_the_message_of_a_whole_section_is_not_named_twice():
    assert (
        refusal([*GIVEN, "--training.kind", "adamw", "--training.epochs", "60"]).count(
            "training.epochs"
        )
        == 1
    )


def test_missing_fields_are_named_one_by_one():
    both = (
        "--data.train is required: URI of the set to train on; --data.val is required: URI of the"
        " set to score on"
    )
    assert refusal([]).startswith(both)
    assert refusal(["--data.train", "a"]).startswith("--data.val is required")
    # What has a default is not asked for.
    assert "share" not in refusal([])


def test_three_complaints_and_how_many_more():
    argv = [
        "--training.epochs",
        "0",
        "--training.rate",
        "0",
        "--training.kind",
        "x",
        "--training.amp",
        "x",
        "--data.share",
        "2",
    ]
    assert refusal(GIVEN + argv).count("must be") == 3 and "and 2 more" in refusal(GIVEN + argv)


def test_lists_in_the_environment_are_json(monkeypatch):
    monkeypatch.setenv("RETINARAY_TRAINING__SCALES", "[3, 4]")
    assert parse(Config, GIVEN).training.scales == (3.0, 4.0)


def test_an_environment_variable_that_cannot_be_read(monkeypatch):
    monkeypatch.setenv("RETINARAY_TRAINING__SCALES", "1,2")
    assert "RETINARAY_TRAINING..." in refusal(GIVEN)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"training: {epochs: 3", "not valid YAML"),
        (b"- 1\n- 2\n", "holds a list"),
        (b"just words", "must hold lines `section: {field: value}`, holds a single value"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"training: 5\n", "training: is a section of fields"),
        (b"training:\n", "training: is a section of fields"),
        (b"training: {epochs: 3}\ntraining: {rate: 0.1}\n", "'training' stands twice; keep one"),
        (b"training: {epochs: 3, epochs: 5}\n", "'epochs' stands twice; keep one of them"),
        (b"training: {weights: 5}\n", "training.weights 5: must be JSON, numbers by name such as"),
    ],
)
def test_bad_config_files(tmp_path, content, words):
    (tmp_path / "bad.yaml").write_bytes(content)
    message = refusal(["--config", str(tmp_path / "bad.yaml"), *GIVEN])
    assert words in message


def test_a_config_file_that_is_not_there(tmp_path):
    message = refusal(["--config", str(tmp_path / "none.yaml")])
    assert "none.yaml: cannot be read (No such file or directory)" in message
    assert "--config needs a value" in refusal(["--config"])
    assert "cannot be read" in refusal(["--config", str(tmp_path)])


def test_two_config_files_are_refused(tmp_path):
    twice = yaml_file(tmp_path, "training: {epochs: 3}")
    message = refusal([*twice, *twice, *GIVEN])
    assert message.startswith("--config is given 2 times (")
    assert message.endswith("; give one, and the rest as flags")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        # One underscore in place of two, a misspelt section, a misspelt field.
        ("RETINARAY_TRAINING_EPOCHS", "did you mean RETINARAY_TRAINING__EPOCHS?"),
        ("RETINARAY_TRAINNG__EPOCHS", "did you mean RETINARAY_TRAINING__EPOCHS?"),
        ("retinaray_training__epoch", "did you mean RETINARAY_TRAINING__EPOCHS?"),
        ("RETINARAY_", "unset it"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(monkeypatch, name, meant):
    monkeypatch.setenv(name, "5")
    assert refusal(GIVEN) == f"environment variable {name}: is no setting of any verb; {meant}"


def test_a_wrong_value_of_a_variable_is_named_with_the_variable(monkeypatch):
    monkeypatch.setenv("RETINARAY_TRAINING__EPOCHS", "abc")
    assert refusal(GIVEN).startswith(
        "RETINARAY_TRAINING__EPOCHS='abc': must be integer, at least 1"
    )
    # A flag wins over the variable, so a wrong flag is named as a flag.
    assert refusal([*GIVEN, "--training.epochs", "x"]).startswith("training.epochs 'x': must be")


def test_a_variable_of_another_verb_is_left_alone(monkeypatch):
    monkeypatch.setenv("RETINARAY_SWEEP__TRIALS", "5")
    monkeypatch.setenv("RETINARAY_OVERLAYS", "3")
    monkeypatch.setenv("retinaray_training__epochs", "7")
    assert parse(Config, GIVEN).training.epochs == 7


def test_all_verbs_are_known():
    assert all_verbs() == {verb: config_class_of(verb) for verb in VERBS}


def test_a_recipe_is_found_by_its_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_yaml("small_r18")["model"]["backbone"] == "resnet18"
    Path("modern_r50").mkdir()
    assert read_yaml("modern_r50")["optimizer"]["name"] == "adamw"
    message = refusal(["--config", "small_r81", *GIVEN])
    assert "small_r81: cannot be read" in message and "recipes finetune_r50," in message


def test_a_recipe_of_another_verb_is_called_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(["--config", "quickstart", *GIVEN])
    assert message.startswith("--config quickstart: is no recipe for this verb; ")


def test_help_speaks_of_recipes_where_there_are_some():
    assert "such as small_r18" in help_text(config_class_of("train"), description="")
    assert "small_r18" not in help_text(config_class_of("shards"), description="")


def test_a_file_of_the_user_comes_before_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small_r18").write_text("model: {backbone: resnet101}")
    assert read_yaml("small_r18")["model"]["backbone"] == "resnet101"


def test_a_verb_that_does_not_resume_says_so(capsys):
    def main(config: Config) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_verb(Config, main, description="", resumes=False, argv=GIVEN)
    assert end.value.code == 5
    assert capsys.readouterr().err == "error: interrupted; the same command starts again\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PlainError("the server is down"), 1, "error: the server is down\n"),
        (UsageError("no such bucket"), 2, "error: no such bucket\n"),
        (DataError("too much is broken"), 3, "error: too much is broken\n"),
        (GateError("AP fell"), 4, "error: AP fell\n"),
        (InterruptedRun("stopped"), 5, "error: stopped\n"),
        (
            KeyboardInterrupt(),
            5,
            "error: interrupted; the same command continues where it stopped\n",
        ),
        (
            NotADirectoryError(20, "Not a directory", "/data/a.json/index.json"),
            2,
            "error: /data/a.json/index.json: not a directory; check the path\n",
        ),
        (
            PermissionError("[Errno 13] Failed to open local file '/x'. Detail: [errno 13] denied"),
            2,
            "error: Failed to open local file '/x'; check the path\n",
        ),
        (
            ZeroDivisionError("oh"),
            1,
            (
                "error: ZeroDivisionError: oh (a bug or a failing machine; --debug shows the"
                " traceback)\n"
            ),
        ),
        (
            RuntimeError(),
            1,
            (
                "error: RuntimeError: no message (a bug or a failing machine; --debug shows the"
                " traceback)\n"
            ),
        ),
    ],
)
def test_exit_codes(error, code, line, capsys):
    def main(config: Config) -> None:
        raise error

    assert leave(main) == code
    assert capsys.readouterr().err == line
    assert leave(main, [*GIVEN, "--debug"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.endswith(line)


def test_done_is_zero_and_silent(capsys):
    seen = []
    assert leave(seen.append) == 0
    assert seen[0].data.train == "a"
    assert capsys.readouterr() == ("", "")


def test_usage_errors_come_before_the_work(capsys):
    assert leave(lambda config: pytest.fail("the work began"), ["--nonsense", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_messages_of_several_lines_become_one(capsys):
    def main(config: Config) -> None:
        raise PlainError("first\n\n   second   \nthird")

    assert leave(main) == 1
    assert capsys.readouterr().err == "error: first second third\n"


def test_help_shows_kinds_ranges_defaults_and_meanings(capsys):
    assert leave(lambda config: pytest.fail("the work began"), ["--help", "--nonsense"]) == 0
    text = capsys.readouterr().out
    assert "A verb." in text and "--data.train ... --data.val ..." in text.splitlines()[0]
    for line in (
        "  --name  text; default run",
        "  --note  text; default unset",
        "data: Shard sets.",
        "  --data.train  text; required",
        "        URI of the set to train on",
        "  --data.share  number, above 0, at most 1; default 1",
        "training: how long and how fast",
        "  --training.epochs  integer, at least 1, at most 100; default 3",
        "  --training.kind  sgd | adamw; default sgd",
        "  --training.amp  true | false; default true",
        "  --training.scales  numbers with commas between; default 1,2",
        "  --training.crops  JSON, a list of lists such as [[1,2],[3,4]]; default empty",
        '  --training.weights  JSON, numbers by name such as {"a":1,"b":2}; default empty',
        "        one of them as a flag of its own: --training.weights.NAME VALUE",
    ):
        assert line in text.splitlines(), line


class Folder(Section):
    """A folder of images, or a list
    of folders.

    This paragraph is not shown.
    """

    path: str | None = Field(None, description="one folder")
    paths: tuple[Data, ...] = Field((), description="several folders")

    @model_validator(mode="after")
    def one_of_both(self) -> Folder:
        if not self.path and not self.paths:
            raise ValueError("path or paths must be given")
        return self


class Folders(Section):
    train: Folder
    weights: dict[str, str] | None = Field(None, description="texts")
    pair: tuple[int, int] = Field((1, 2), description="two numbers")
    choices: tuple[Literal["a", "b"], ...] = Field((), description="several of a few")
    checked: Annotated[str, AfterValidator(str.strip)] | None = Field(None, description="a name")


def test_help_of_sections_lists_and_mappings():
    lines = help_text(Folders, description="").splitlines()
    for line in (
        "train: A folder of images, or a list of folders.",
        "  --train.paths  JSON, a list of {train, val, share}; default empty",
        "          train: text; required; URI of the set to train on",
        '  --weights  JSON, texts by name such as {"a":"x","b":"y"}; default unset',
        "  --pair  integers with commas between, exactly 2; default 1,2",
        "  --choices  some of a, b, with commas between; default empty",
        "  --checked  text; default unset",
    ):
        assert line in lines, line
    assert not any("not shown" in line for line in lines)


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_each_option_under_the_heading_of_its_section(verb):
    config_class, heading = config_class_of(verb), ""
    sections = {name for name, field in all_fields(config_class).items() if section_of(field)}
    for line in help_text(config_class, description="", topic="all").splitlines():
        heading = line.partition(":")[0] if line.partition(":")[0] in sections else heading
        if line.startswith("  --") and line.split()[0] not in ("--config", "--debug"):
            assert line.split()[0][2:].rpartition(".")[0] == heading, line


def test_a_section_without_a_required_option_is_named_with_the_rule():
    with pytest.raises(UsageError, match="^train is required: A folder .*--train.path, --train.pa"):
        parse(Folders, [])
    with pytest.raises(UsageError, match="^train: path or paths must be given; --help"):
        parse(Folders, ["--train.path="])
    with pytest.raises(UsageError, match="^--train.paths.val is required: URI of the set to sc"):
        parse(Folders, ["--train.paths", '[{"train": "a"}]'])


def config_class_of(verb: str) -> type[BaseModel]:
    """What the script hands to run_verb; it may have it from another file."""
    tree = ast.parse((ROOT / "pipelines" / f"{verb}.py").read_text())
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_verb"
    ]
    return getattr(importlib.import_module(f"pipelines.{verb}"), call.args[0].id)


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_of_a_verb_has_a_meaning_and_every_number_a_range(verb):
    config_class = config_class_of(verb)
    assert config_class.model_config["frozen"] and config_class.model_config["extra"] == "forbid"
    for name, field in all_fields(config_class).items():
        if section_of(field):
            continue
        assert field.description, name
        if field.annotation in (int, float, int | None, float | None):
            assert any(
                hasattr(rule, bound)
                for rule in field.metadata
                for bound in ("ge", "gt", "le", "lt")
            ), f"{name} takes any number"
        assert f"--{name}  " in help_text(config_class, description="", topic="all")


def test_help_and_refusals_do_not_wait_for_heavy_imports():
    imports = "; ".join(f"import pipelines.{verb}" for verb in VERBS)
    check = (
        f"import sys; {imports}; print(sorted(sys.modules.keys() & {{'torch', 'ray', 'mlflow',"
        " 'torchvision', 'matplotlib', 'boto3', 'pandas'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


class Large(Config):
    FIRST: ClassVar[tuple[str, ...]] = ("training.epochs", "name")


def test_help_of_a_large_verb_shows_what_matters_first(capsys):
    def shown(*topic: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run_verb(Large, pytest.fail, description="A verb.", argv=["--help", *topic])
        assert ended.value.code == 0
        return capsys.readouterr().out

    def options(text: str) -> list[str]:
        names = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
        return [name for name in names if name not in ("--config", "--debug")]

    assert options(shown()) == ["--training.epochs", "--name"]
    assert "\n  training: how long and how fast\n" in shown()
    assert options(shown("data")) == ["--data.train", "--data.val", "--data.share"]
    assert options(shown("data.val")) == ["--data.val"]
    assert set(options(shown("all"))) > {"--training.kind", "--note", "--data.val"}


@pytest.mark.parametrize("verb", VERBS)
def test_what_matters_first_are_options_of_the_verb(verb):
    config_class = config_class_of(verb)
    fields = all_fields(config_class)
    first = getattr(config_class, "FIRST", ())
    assert all(name in fields and not section_of(fields[name]) for name in first)
    assert bool(first) == (len(fields) > 60)
    shown = help_text(config_class, description="").splitlines()
    assert len(shown) < 100


def test_a_wrong_topic_of_help_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        run_verb(Large, pytest.fail, description="", argv=["--help", "trainin"])
    assert ended.value.code == 2
    assert "--help trainin: is no section or option; give all, or" in capsys.readouterr().err


def test_words_of_other_programs_lead_to_our_options():
    def answer(verb: str, *flags: str) -> str:
        with pytest.raises(UsageError) as refused:
            parse(config_class_of(verb), list(flags))
        return str(refused.value)

    for verb, word, option in (
        ("train", "lr", "optimizer.learning_rate"),
        ("train", "epochs", "training.epochs"),
        ("train", "batch-size", "training.batch_size"),
        ("train", "imgsz", "canvas.height or --canvas.width"),
        ("train", "device", "training.gpus_per_worker"),
        ("predict", "conf", "thresholds"),
        ("predict", "source", "images"),
        ("evaluate", "weights", "run or --model"),
    ):
        assert f"--{word} is not an option; did you mean --{option}?" in answer(verb, f"--{word}")
    assert "--resume is not an option; the same command resumes" in answer("train", "--resume")
    every = {name for verb in VERBS for name in all_fields(config_class_of(verb))}
    assert {n for names in refusals.FOREIGN_WORDS.values() for n in names} <= every | {"config"}


def test_all_wrong_names_are_told_at_once_with_where_each_came_from(tmp_path, monkeypatch):
    monkeypatch.setenv("RETINARAY_TRAINING__EPOCS", "2")
    flags = [*yaml_file(tmp_path, "training: {epoch: 1}\nnamee: a\n"), "--data.vall", "x"]
    message = refusal(GIVEN + flags)
    for part in (
        "training.epoch (in ",
        "namee (in ",
        "environment variable RETINARAY_TRAINING__EPOCS: is no setting of any verb",
        "--data.vall is not an option; did you mean --data.val or --data.train?",
    ):
        assert part in message, message


def test_help_that_is_not_read_to_its_end_is_no_error():
    """`--help | head -1`."""
    command = [sys.executable, "-m", "pipelines.shards", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as verb:
        assert verb.stdout is not None and verb.stderr is not None
        verb.stdout.close()
        assert verb.stderr.read() == b""
    assert verb.returncode == 0


@pytest.mark.parametrize(
    "script",
    [
        'exec "$@"',
        # A shell without job control starts a background job with SIGINT ignored.
        '"$@" & wait $!',
    ],
)
def test_sigterm_ends_a_verb_like_ctrl_c(script: str, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    os.mkfifo(settings)
    # The shell passes its process id on, or that of its job.
    start = f'import os; print(os.getpid(), flush=True); os.execv("{sys.executable}", ["python",'
    start += f' "-m", "pipelines.shards", "--config", "{settings}"])'
    command = ["sh", "-c", script, "sh", sys.executable, "-c", start]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None and shell.stderr is not None
        number = int(shell.stdout.readline())
        writer = None
        while writer is None and shell.poll() is None:
            # Refused until the verb reads its settings.
            with contextlib.suppress(OSError):
                writer = os.open(settings, os.O_WRONLY | os.O_NONBLOCK)
            time.sleep(0.01)
        os.kill(number, signal.SIGTERM)
        assert shell.stderr.read() == "error: interrupted; the same command starts again\n"
    assert writer is not None
    os.close(writer)
    assert shell.returncode == 5


def test_several_texts_may_stand_behind_one_flag() -> None:
    from pipelines.evaluate_config import EvaluateConfig

    def compared(*words: str) -> tuple[str, ...]:
        return parse(EvaluateConfig, ["--output", "o", *words, "--data", "d"]).compare

    assert compared("--compare", "a", "b c") == ("a", "b c") == compared("--compare=a,b c")
    assert compared("--compare", "a,b") == ("a", "b")


def test_a_job_is_refused_whose_results_would_be_deleted_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    verbs = all_verbs()
    data = ["--data.train", "s3://cells/train", "--data.val", "s3://cells/val", "--name", "a"]
    package = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0123"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for verb, argv, named in [
        ("train", data, "--storage runs"),
        ("sweep", data, "--storage runs"),
        ("prepare", ["--annotations", "a.json", "--output", "set"], "--output set"),
        ("history", ["--name", "cells"], "--tracking.uri is not given"),
        ("history", ["--name", "cells", "--storage", "s3://cells/store"], "--tracking.uri is not"),
    ]:
        main = importlib.import_module(f"pipelines.{verb}").main
        with pytest.raises(SystemExit) as ended:
            run_verb(verbs[verb], main, description="", argv=argv)
        message = capsys.readouterr().err
        assert ended.value.code == 2 and message.startswith(f"error: {named}"), message
        assert "is on the node of this job alone" in message
