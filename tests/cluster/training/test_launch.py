"""What the driver does before and after the workers run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.runs import run_folder
from cluster.runs.config import TrainConfig
from cluster.storage import files
from cluster.training import launch, preflight


def test_the_configuration_is_that_of_the_driver_that_holds_the_run(tmp_path: Path) -> None:
    """Both have looked before one had the lease; the other one was the last to write what names the
    run.
    """
    given = {"data": {"train": "/t", "val": "/v"}, "storage": str(tmp_path), "name": "cells"}
    configs = [
        TrainConfig.model_validate({**given, "loss": {"gamma": gamma}}) for gamma in (2.0, 1.0)
    ]
    run = configs[0].run_uri
    checked = []
    for config in configs:
        identity = {"loss": {"gamma": config.loss.gamma}}
        checked.append(
            preflight.Checked(
                None,
                identity,
                False,
                run_folder.claim(run, config.model_dump(mode="json"), identity, begun=False),
            )
        )
    again = launch.claim_again(configs[0], checked[0])
    claim = run_folder.read_claim(run)
    assert (
        claim.identity == checked[0].identity
        and claim.run_uuid == again.run_uuid != checked[1].run_uuid
        and not again.begun
    )
    # Once there is a checkpoint, one that comes late finds another's run.
    files.write_json(f"{run_folder.checkpoint_uri(run, 8)}/{run_folder.STATE_FILE}", {})
    assert launch.claim_again(configs[0], checked[0]).begun
    with pytest.raises(UsageError, match="loss.gamma was 2.0, is 1.0"):
        launch.claim_again(configs[1], checked[1])
