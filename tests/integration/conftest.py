"""What integration tests share: the weights of trainings that nothing disturbed. The same seed
gives the same bits: it covers weights, order and augmentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.once import made_once
from tests.support.packages import make_package
from tests.support.trainings import ALONE, Watched, configured, last_weights


@pytest.fixture(scope="session")
def undisturbed(session_folder: Path, small_sets: dict[str, str]) -> dict[str, bytes]:
    """The weights, by file name, at the end of `TRAINING`. With as many workers before a fault as
    after it, a run ends with the same bits: this shows that no image was lost or seen twice.
    """
    return weights_of(session_folder / "undisturbed", small_sets)


@pytest.fixture(scope="session")
def undisturbed_alone(session_folder: Path, small_sets: dict[str, str]) -> dict[str, bytes]:
    """The same of one worker: `TRAINING` changed by `ALONE`."""
    return weights_of(session_folder / "undisturbed-alone", small_sets, **ALONE)


def weights_of(folder: Path, sets: dict[str, str], **training: Any) -> dict[str, bytes]:
    def make(folder: Path) -> None:
        folder.mkdir()
        config = configured(sets, folder / "store", "undisturbed", **training)
        assert Watched(config).error is None
        for name, content in last_weights(config).items():
            (folder / name).write_bytes(content)

    made_once(folder, make)
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """See `make_package`."""
    folder = tmp_path_factory.mktemp("package")
    make_package(tmp_path_factory.mktemp("checkpoint"), folder)
    return str(folder)
