"""A small model package for the tests of several rooms."""

from __future__ import annotations

import pytest

from tests.support.packages import make_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """See `make_package`."""
    folder = tmp_path_factory.mktemp("package")
    make_package(tmp_path_factory.mktemp("checkpoint"), folder)
    return str(folder)
