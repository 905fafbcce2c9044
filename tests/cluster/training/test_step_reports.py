"""Numbers of steps on their way from the device, and updates that are not finite."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import torch

from cluster.training.ranks import Ranks
from cluster.training.state import Progress
from cluster.training.step_reports import StepReports
from detector.step import NonFiniteLoss, StepReport


def step_report(
    *, classification: float = 0.5, own: tuple[bool, bool] = (True, True)
) -> StepReport:
    values = torch.tensor([classification, 0.5, 1.0, 1.0, 90.0])
    return StepReport(values, torch.tensor(own), torch.tensor([7, 8]))


def test_on_a_gpu_reports_are_read_one_step_late() -> None:
    gpu = Ranks(0, 1, SimpleNamespace(type="cuda"))
    reports = StepReports[int](gpu, Progress(8), allowed=0, tell=lambda event: None)
    read = []
    for step in range(1, 4):
        reports.add(step_report(classification=float(step)), step, step)
        read.append(
            [(numbers.classification, values) for numbers, values in reports.read(drain=False)]
        )
    assert read == [[], [(1.0, 1)], [(2.0, 2)]]
    assert [values for _, values in reports.read(drain=True)] == [3]


class TwoRanks:
    """Two threads that stand for two ranks."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self.barrier = threading.Barrier(2, timeout=30)

    def of(self, rank: int) -> Any:
        def gather(value: Any) -> list[Any]:
            self.values[rank] = value
            self.barrier.wait()
            return [self.values[rank] for rank in range(2)]

        return SimpleNamespace(rank=rank, size=2, device=torch.device("cpu"), gather=gather)


def test_the_error_names_the_rank_whose_own_loss_is_not_finite() -> None:
    """Rank 0 learns of it only through the sum; rank 1 has the image."""
    ranks, texts = TwoRanks(), {}

    def work(rank: int) -> None:
        reports = StepReports[None](ranks.of(rank), Progress(8), allowed=0, tell=lambda event: None)
        reports.add(step_report(classification=float("nan"), own=(rank == 0, True)), 5, None)
        try:
            list(reports.read(drain=True))
        except NonFiniteLoss as error:
            texts[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts[0] == texts[1] and texts[0].startswith(
        "step 5, rank 1: the loss of images [7] is not finite"
    )
