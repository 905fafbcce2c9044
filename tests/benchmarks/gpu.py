"""Everything that docs/benchmarks.md says of a GPU, in two calls of six minutes.

    python tests/benchmarks/gpu.py --call 1 --output gpu.jsonl
    python tests/benchmarks/gpu.py --call 2 --output gpu.jsonl
    python tests/benchmarks/gpu.py --dry --call 1 --output dry.jsonl   toy sizes on the CPU

The parts run in the order of their importance, each in a process of its own that is ended at its
limit. Each figure is a line of JSON in --output as soon as it is there, so an ended part loses only
what it had not measured. The table of all lines is printed last. A part whose packages are missing
is left out: the parts of the bare network need torch, torchvision and numpy, those through Ray the
whole project (a folder with unpacked wheels in PYTHONPATH will do).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from tests.benchmarks import gpu_parts, gpu_pipeline
from tests.benchmarks.gpu_parts import Figure, Sizes
from tests.benchmarks.gpu_pipeline import ROOT

MINUTES = 6.0
"""Of a call."""
LEAST_S = 20.0
"""A part with less time is not begun."""
DRY_TIMES = 20
"""Times the limit of a part on a CPU, which others may use too."""
END_S = 10.0
"""For a part to end after it was told to."""
WHOLE = ("ray", "pyarrow", "pydantic", "mlflow")


@dataclass(frozen=True)
class Part:
    measure: Callable[[Sizes], Iterator[Figure]]
    call: int
    limit_s: float
    needs: tuple[str, ...] = ()
    """Packages besides torch, torchvision and numpy."""

    @property
    def name(self) -> str:
        return self.measure.__name__


PARTS = (
    Part(gpu_parts.fixed, 1, 120),
    Part(gpu_pipeline.fed, 1, 150, WHOLE),
    Part(gpu_parts.small_batch, 1, 100),
    Part(gpu_parts.trained, 1, 150),
    Part(gpu_pipeline.training, 2, 170, WHOLE),
    Part(gpu_parts.compiler, 2, 170),
    Part(gpu_parts.jpegs, 2, 30),
    Part(gpu_parts.batch_norm, 2, 40),
    Part(gpu_pipeline.prediction, 2, 90, WHOLE),
    Part(gpu_pipeline.quickstart, 2, 150, WHOLE),
)
"""The most important ones of each call first."""


def run_part(command: Sequence[str], limit_s: float) -> str | None:
    """Run a part and everything that it starts. Why it has not come to its end, or None."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(timeout=limit_s)
        return None if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        return f"ended after {limit_s:.0f} s, its limit"
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=END_S)


def missing(part: Part) -> list[str]:
    return [name for name in part.needs if importlib.util.find_spec(name) is None]


def append(output: str, line: Mapping[str, Any]) -> None:
    with open(output, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def run_call(parts: Sequence[Part], *, output: str, dry: bool, minutes: float) -> None:
    deadline = time.monotonic() + 60 * minutes
    for part in parts:
        left = deadline - time.monotonic()
        limit = min(part.limit_s * (DRY_TIMES if dry else 1), left)
        if lacking := missing(part):
            left_out = f"left out: {', '.join(lacking)} not installed"
        elif left < LEAST_S:
            left_out = f"left out: {minutes:g} minutes are over"
        else:
            print(f"{part.name}: at most {limit:.0f} s", flush=True)
            command = [sys.executable, os.path.abspath(__file__), "--part", part.name]
            command += ["--output", output, *(["--dry"] if dry else [])]
            left_out = run_part(command, limit)
        if left_out is not None:
            append(output, {"part": part.name, "note": left_out})


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Medians over the rounds, and the median ratio to the reference of a case in its round."""
    rows = ["| part | case | way | unit | median | min | max | ratio | more |", "|---" * 9 + "|"]
    figures = [line for line in lines if "value" in line]
    for key in dict.fromkeys(_key(line) for line in figures):
        own = [line for line in figures if _key(line) == key]
        values = [line["value"] for line in own]
        shown = [statistics.median(values), min(values), max(values)]
        more = ", ".join(f"{name} {value}" for name, value in own[-1]["more"].items())
        cells = [*key, *(f"{value:.4g}" for value in shown), _ratio(own, figures), more]
        rows.append(f"| {' | '.join(cells)} |")
    notes = [f"{line['part']}: {line['note']}" for line in lines if "note" in line]
    return "\n".join([*rows, *notes])


def _key(line: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return line["part"], line["case"], line["way"], line["unit"]


def _ratio(own: Sequence[Mapping[str, Any]], figures: Sequence[Mapping[str, Any]]) -> str:
    """How many times as fast as the reference, which is another way of the same part."""
    references = {
        line["round"]: line["value"]
        for line in figures
        if line["part"] == own[0]["part"]
        and line["way"] == own[0]["reference"]
        and line["unit"] == own[0]["unit"]
    }
    pairs = [
        (line["value"], references[line["round"]]) for line in own if line["round"] in references
    ]
    if not pairs:
        return ""
    slower = own[0]["unit"] in gpu_parts.TIMES
    return f"{statistics.median(b / a if slower else a / b for a, b in pairs):.2f}"


def read_lines(output: str) -> list[dict[str, Any]]:
    """All lines; one that a part was ended in the middle of is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError), open(output, encoding="utf-8") as file:
        for text in file:
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--call", type=int, choices=[1, 2])
    parser.add_argument("--parts", nargs="+", choices=names, help="these alone, in this order")
    parser.add_argument("--output", required=True, help="file of JSON lines, added to")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--dry", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    output = os.path.abspath(options.output)
    by_name = {part.name: part for part in PARTS}
    if options.part:
        sizes = gpu_parts.DRY if options.dry else gpu_parts.REAL
        about = gpu_parts.about(sizes)
        for figure in by_name[options.part].measure(sizes):
            append(output, {"part": options.part, **figure.to_json(), **about})
        return
    if not options.call and not options.parts:
        parser.error("--call 1, --call 2 or --parts is required")
    parts = [by_name[name] for name in options.parts or []] or [
        part for part in PARTS if part.call == options.call
    ]
    run_call(parts, output=output, dry=options.dry, minutes=options.minutes)
    print(table(read_lines(output)))


if __name__ == "__main__":
    main()
