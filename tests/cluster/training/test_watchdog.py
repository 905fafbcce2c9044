"""A process whose work stands still ends itself, after it has said where it stands."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from cluster.training.watchdog import EXIT_CODE, Watchdog

WORK = """
    import threading
    from types import SimpleNamespace
    from cluster.training import watchdog
    main, looked, now = threading.get_ident(), threading.Event(), [0.0]
    def monotonic():
        if threading.get_ident() != main:
            looked.set()
        return now[0]
    watchdog.time = SimpleNamespace(monotonic=monotonic, sleep=lambda seconds: None)
    def on_hang(seconds, location):
        print(round(seconds, 1), location, flush=True)
    watched = watchdog.Watchdog(1.0, on_hang)
    def pass_time(seconds):
        now[0] += seconds
        for _ in range(2):  # a look that has begun already does not count
            looked.clear()
            looked.wait()
    {work}
"""


def run(work: str) -> subprocess.CompletedProcess:
    """A process whose watchdog, with a limit of a second, sees only the time that passes here."""
    command = [sys.executable, "-c", textwrap.dedent(WORK.format(work=work))]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        ("watched.progressed(); pass_time(0.9); pass_time(0.2)", 1.1),
        # Before the first step it has four times as long.
        ("pass_time(3.9); pass_time(0.2)", 4.1),
    ],
)
def test_a_standstill_ends_the_process_and_its_location_is_told(work: str, seconds: float) -> None:
    done = run(work)
    assert done.returncode == EXIT_CODE, done.stderr
    told, location = done.stdout.strip().split(" ", 1)
    assert float(told) == seconds
    assert location.startswith("hangs, at ") and location.endswith(" wait")
    # All threads, for whoever reads the worker's log.
    assert "most recent call first" in done.stderr and "in _watch" in done.stderr


def test_progress_ends_nothing() -> None:
    steps = "[(pass_time(0.9), watched.progressed()) for _ in range(3)]"
    done = run(f"{steps}; watched.stop(); now[0] += 9")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_limit_of_zero_starts_no_thread() -> None:
    before = threading.active_count()
    Watchdog(0, lambda seconds, location: None)
    assert threading.active_count() == before


RANK = """
    import sys
    import torch
    import torch.distributed as dist
    from cluster.training.watchdog import Watchdog
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
    if rank:
        input()  # until rank 0 has told what it waits for
    Watchdog(2.0, lambda seconds, location: print(location, flush=True))
    dist.all_reduce(torch.ones(1))
"""


def test_a_rank_that_waits_for_others_is_told_apart_from_one_that_hangs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RANK)]
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    with subprocess.Popen([*command, "1", f"{tmp_path}/store"], **pipes) as other:
        with subprocess.Popen([*command, "0", f"{tmp_path}/store"], **pipes) as rank:
            place = rank.stdout.readline()
        assert rank.returncode == EXIT_CODE
        other.kill()
    assert place.startswith("waits for other ranks, at ") and "all_reduce" in place
