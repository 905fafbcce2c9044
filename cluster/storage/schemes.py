"""The table of URI schemes for object storage. A URI without one of them is a path on a local disk.

To add a scheme: write a module like `s3` with the functions that `ObjectStore` names, add a row to
`STORES`, and add the environment variables that workers need to `compute/session.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.storage import s3
from cluster.storage.s3_requests import Key

Result = TypeVar("Result")


class ObjectStore(Protocol):
    """What the module of a scheme offers. Paths are bucket/key; failures are `OSError`s."""

    ENVIRONMENT: str
    """Prefix of the environment variables with the endpoint and the credentials."""

    def file_system(self) -> pafs.FileSystem:
        """The client for work: it survives an outage of about a minute."""
        ...

    def hasty_file_system(self) -> pafs.FileSystem:
        """The client for preflight checks: it gives up on a dead endpoint within seconds."""
        ...

    def retry(self, operation: Callable[[], Result]) -> Result:
        """The result of `operation`, which is repeated while its error may be temporary."""
        ...

    def read_range(self, file: pa.NativeFile, start: int, count: int) -> pa.Buffer:
        """Exactly `count` bytes, one at least, from byte `start` on."""
        ...

    def keys(self, path: str) -> Iterator[Key]:
        """The objects below bucket/prefix in the order of their keys, a page in memory."""
        ...

    def put_once(self, path: str, data: bytes) -> bool | None:
        """Write an object if there is none. False: there is one; None: this store cannot."""
        ...

    def list_error(self, path: str) -> OSError | None:
        """The error of one hasty LIST of bucket/key; None where the bucket answers."""
        ...

    def cause(self, path: str, error: OSError) -> str:
        """Why an operation failed and the remedy, as the rest of a sentence."""
        ...


STORES: dict[str, ObjectStore] = {"s3": s3}


def split(uri: str) -> tuple[str | None, str]:
    """(scheme, bucket/key), or (None, `uri` unchanged) for a path on a local disk."""
    scheme, separator, path = uri.partition("://")
    return (scheme, path) if separator and scheme in STORES else (None, uri)


def store_of(uri: str) -> ObjectStore | None:
    """The object store of a URI; None for a path on a local disk."""
    scheme, _ = split(uri)
    return None if scheme is None else STORES[scheme]
