"""What ranks exchange: a single one, and two processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from cluster.training.ranks import Ranks


def test_a_single_rank_needs_no_process_group() -> None:
    alone, tensor = Ranks(0, 1, torch.device("cpu")), torch.ones(2)
    assert alone.sum(tensor) is tensor and tensor.tolist() == [1, 1]
    assert alone.everywhere(True) and not alone.everywhere(False)
    assert alone.agreed("a") == "a" and alone.gather("a") == ["a"]
    alone.broadcast([tensor])


RANK = """
    import sys
    import torch
    import torch.distributed as dist
    from cluster.training.ranks import Ranks
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"))
    assert ranks.sum(torch.tensor([1.0, rank])).tolist() == [2, 1]
    assert ranks.everywhere(True) and not ranks.everywhere(rank == 0)
    assert ranks.agreed({"rank": rank}) == {"rank": 0}
    assert ranks.gather(rank) == [0, 1]
    plain = torch.full((2, 3), float(rank))
    turned = torch.full((1, 2, 3, 4), float(rank)).to(memory_format=torch.channels_last)
    ranks.broadcast([plain, turned])
    assert plain.sum() == 0 and turned.sum() == 0
    assert turned.is_contiguous(memory_format=torch.channels_last)
    # Without this, 10 of 25 pairs ended with "terminate called": gloo's threads outlived the rank.
    dist.destroy_process_group()
"""


def test_two_ranks_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RANK)]
    ranks = [
        subprocess.Popen([*command, str(rank), f"{tmp_path}/store"], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [rank.communicate()[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
