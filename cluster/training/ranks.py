"""What the ranks of a training exchange with each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the `size` ranks of torch's process group. Every method is a collective
    call: all ranks must make it, in the same order. A single rank needs no process group.
    """

    rank: int
    size: int
    device: torch.device
    """Where tensors to exchange lie."""
    local_rank: int = 0
    """Place among the workers of this node."""
    local_size: int = 1
    """Workers that share this node."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def everywhere(self, fact: bool) -> bool:
        """Whether it is true on every rank."""
        return bool(self.sum(torch.tensor(int(fact), device=self.device)) == self.size)

    def agreed(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give all ranks the values of rank 0, in place."""
        if self.size > 1:
            for tensor in tensors:
                sent = tensor.contiguous()
                dist.broadcast(sent, src=0)
                if sent is not tensor:
                    tensor.copy_(sent)
