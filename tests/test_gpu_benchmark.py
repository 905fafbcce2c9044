"""The benchmark of a GPU, with toy sizes on the CPU: its way from a part to the table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.command_line import parse
from pipelines.evaluate_config import EvaluateConfig
from pipelines.run_config import RunConfig
from pipelines.train import TrainVerb
from tests.benchmarks import gpu, gpu_parts, gpu_pipeline
from tests.benchmarks.gpu import PARTS, Part
from tests.benchmarks.gpu_parts import DRY, REAL, Figure, Sizes

BARE = [part for part in PARTS if not part.needs]


@pytest.mark.parametrize("part", BARE, ids=lambda part: part.name)
def test_a_part_measures_what_it_says(part: Part) -> None:
    figures = list(part.measure(DRY))
    assert figures and all(figure.value > 0 for figure in figures)
    ways = {figure.way for figure in figures}
    assert {figure.reference for figure in figures if figure.reference} <= ways
    assert json.loads(json.dumps(figures[0].to_json()))["way"] == figures[0].way


def test_the_fed_step_makes_the_steps_of_an_epoch(ray_cluster: None) -> None:
    figures = list(gpu_pipeline.fed(DRY))
    assert [figure.way for figure in figures] == ["cached batches", "the stream"]
    assert all(figure.value > 0 for figure in figures)


@pytest.mark.parametrize("sizes", [DRY, REAL], ids=["dry", "real"])
def test_the_commands_are_ones_that_the_verbs_take(sizes: Sizes) -> None:
    typed = gpu_pipeline._flags
    training = parse(TrainVerb, typed(gpu_pipeline.train_flags(sizes, "/f")))
    assert training.canvas.canvases == (sizes.canvas,) and training.model.norm == "frozen"
    evaluation = parse(EvaluateConfig, typed(gpu_pipeline.evaluate_flags("/f")))
    # The run is where the training put it.
    assert evaluation.run == training.run_uri
    parse(RunConfig, typed(gpu_pipeline.quickstart_flags(sizes, "/f")))


def test_the_options_are_ones_of_the_compiler() -> None:
    from torch._inductor import list_options

    assert {name for way in gpu_parts.COMPILER_OPTIONS.values() for name in way} <= set(
        list_options()
    )


def test_a_part_in_its_own_process_leaves_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures.jsonl"
    gpu.main(["--dry", "--parts", "jpegs", "--output", str(output), "--minutes", "60"])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["way"] for line in lines] == ["CPU", "device"]
    assert all(line["part"] == "jpegs" and line["torch"] for line in lines)
    # On the CPU both ways are the same.
    assert lines[1]["more"] == {"mean difference": "0.000", "largest": "0"}
    assert "| jpegs | 4 JPEGs of" in capsys.readouterr().out


def test_a_part_is_ended_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    waits = ["sh", "-c", f"sleep 600 & echo $! > {file}; wait"]
    assert gpu.run_part(waits, 5) == "ended after 5 s, its limit"
    pid = int(file.read_text())
    for _ in range(1200):
        if _has_ended(pid):
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there after a minute")


def _has_ended(pid: int) -> bool:
    """Its parent is gone, and in a container nobody may take its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_part_that_fails_says_so() -> None:
    assert gpu.run_part(["sh", "-c", "exit 3"], 60) == "failed with exit code 3"
    assert gpu.run_part(["sh", "-c", "exit 0"], 60) is None


def fails(sizes: Sizes) -> Iterator[Figure]:
    raise AssertionError("a part without its packages is not begun")


def test_what_was_not_measured_is_named(tmp_path: Path) -> None:
    output = str(tmp_path / "figures.jsonl")
    lacking = Part(fails, 1, 60, ("no_such_package",))
    gpu.run_call([lacking], output=output, dry=True, minutes=1)
    gpu.run_call([Part(fails, 1, 60)], output=output, dry=True, minutes=0)
    # The last line of a part that was ended may be cut off.
    with open(output, "a") as file:
        file.write('{"part": "fa')
    assert gpu.read_lines(output) == [
        {"part": "fails", "note": "left out: no_such_package not installed"},
        {"part": "fails", "note": "left out: 0 minutes are over"},
    ]


def test_the_table_has_medians_and_ratios_within_a_round() -> None:
    def line(way: str, value: float, number: int, unit: str = "images/s") -> dict[str, object]:
        figure = Figure("16 x 800x800", way, unit, value, number, "theirs", {"MFU": "48 %"})
        return {"part": "fixed", **figure.to_json()}

    lines = [
        *(line("theirs", value, number) for number, value in enumerate((100.0, 110.0, 50.0))),
        *(line("ours", value, number) for number, value in enumerate((300.0, 440.0, 150.0))),
        line("theirs", 20, 0, "ms"),
        line("ours", 5, 0, "ms"),
    ]
    # 300 / 100, 440 / 110, 150 / 50; and 20 ms are four times 5 ms.
    assert gpu.table(lines).splitlines()[2:] == [
        "| fixed | 16 x 800x800 | theirs | images/s | 100 | 50 | 110 | 1.00 | MFU 48 % |",
        "| fixed | 16 x 800x800 | ours | images/s | 300 | 150 | 440 | 3.00 | MFU 48 % |",
        "| fixed | 16 x 800x800 | theirs | ms | 20 | 20 | 20 | 1.00 | MFU 48 % |",
        "| fixed | 16 x 800x800 | ours | ms | 5 | 5 | 5 | 4.00 | MFU 48 % |",
    ]
