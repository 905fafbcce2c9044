"""What the tests of several rooms share: a small model package, and a server that checks keys."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.packages import make_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """See `make_package`."""
    folder = tmp_path_factory.mktemp("package")
    make_package(tmp_path_factory.mktemp("checkpoint"), folder)
    return str(folder)


@pytest.fixture
def checks_credentials(s3: str) -> Iterator[None]:
    """The server checks credentials only after it got the number of requests to accept without."""

    def set_free_requests(count: bytes) -> None:
        request = urllib.request.Request(
            f"{s3}/moto-api/reset-auth", data=count, headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    set_free_requests(b"0")
    yield
    set_free_requests(b"inf")
