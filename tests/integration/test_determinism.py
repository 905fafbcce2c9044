"""The same seed gives one worker the same bits, in one go or resumed: the seed covers weights,
order and augmentation. Two workers: tests/integration/test_worker_faults.py, whose runs that begin
anew or go on after a fault have the bits of a run that nothing disturbed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.training import launch
from tests.support.trainings import configured, last_weights

pytestmark = pytest.mark.integration


def trained(run: TrainConfig) -> dict[str, bytes]:
    """The weights and their average in the last checkpoint."""
    launch.launch(run)
    return last_weights(run)


def test_a_run_in_one_go_and_the_same_run_resumed_have_the_same_bits(
    small_sets: dict[str, str], tmp_path: Path
) -> None:
    whole, resumed = (
        configured(small_sets, tmp_path, name, workers=1, decode_threads=2)
        for name in ("whole", "resumed")
    )
    first = trained(whole)

    # A checkpoint in the middle of the first epoch of 24 images, under another run's name, is what
    # an interrupted run leaves behind.
    middle = run_folder.checkpoint_uri(whole.run_uri, 16)
    assert middle in run_folder.checkpoints(whole.run_uri)
    files.upload_folder(middle, run_folder.checkpoint_uri(resumed.run_uri, 16))
    run_folder.write(
        resumed.run_uri, run_folder.CONFIG, run_folder.read(whole.run_uri, run_folder.CONFIG)
    )
    assert trained(resumed) == first
    assert run_folder.checkpoint_uri(resumed.run_uri, 8) not in run_folder.checkpoints(
        resumed.run_uri
    )
