from __future__ import annotations

from tune import sweep
from tune.space import SweepConfig


def test_as_many_trials_run_at_once_as_the_nodes_have_room_for() -> None:
    two = SweepConfig(concurrent=2)
    # A trial books 0.01 + 1 x (0.5 + 0.25) = 0.76 CPUs: two fit into 2 CPUs, one into 1.5, none
    # into 0.75.
    assert [sweep.fitting(two, [{"CPU": cpus}]) for cpus in (64, 2, 1.52, 1.5, 0.76, 0.75)] == [
        2,
        2,
        2,
        1,
        1,
        0,
    ]
    # Two workers with a GPU each: 3 GPUs hold one trial.
    wide = SweepConfig(concurrent=4, workers=2, cpus_per_worker=1, gpus_per_worker=1)
    assert [sweep.fitting(wide, [{"CPU": 64, "GPU": gpus}]) for gpus in (1, 3, 4, 100)] == [
        0,
        1,
        2,
        4,
    ]
    # Nodes with one each hold half a trial each, and what has three CPUs in all may hold none.
    assert (
        sweep.fitting(wide, [{"CPU": 2, "GPU": 1}] * 5) == 2
        and sweep.fitting(two, [{"CPU": 0.5}] * 6) == 0
    )
