"""Names of files and folders: an absolute local path or scheme://bucket/key."""

from __future__ import annotations

import os
import posixpath

from cluster.errors import UsageError
from cluster.storage import schemes

FORMS = " or ".join(
    ["an absolute local path", *(f"{scheme}://bucket/key" for scheme in schemes.STORES)]
)
"""The URIs that the project accepts, as part of a sentence."""


def absolute(uri: str) -> str:
    """A relative local path (also with ~) becomes absolute; a URI of object storage stays, without
    a trailing slash. `UsageError` for other schemes.
    """
    if not uri:
        raise UsageError(f"an empty path was given; give {FORMS}")
    scheme, path = schemes.split(uri)
    if scheme is not None:
        bucket = path.split("/", 1)[0]
        if not bucket or "@" in bucket or ":" in bucket:
            # The message does not repeat the URI: the part before an @ may be a secret.
            raise UsageError(
                f"a URI with {scheme}:// must have the form {scheme}://bucket/key; put credentials"
                f" and the endpoint into the environment ({schemes.STORES[scheme].ENVIRONMENT}...)"
            )
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise UsageError(f"the scheme {uri.split('://')[0]}:// is not supported; give {FORMS}")
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def is_remote(uri: str) -> bool:
    """Whether the URI is in object storage, which every node can read; a local path may exist on
    one node alone.
    """
    return schemes.store_of(uri) is not None


def join(uri: str, *names: str) -> str:
    return posixpath.join(uri.rstrip("/") or "/", *names)


def is_below(uri: str, folder: str) -> bool:
    """Whether `uri` names something inside `folder`; both are absolute."""
    return uri.startswith(folder.rstrip("/") + "/")


def relative_to(uri: str, folder: str) -> str:
    """The name of `uri` relative to `folder`, in which it must be."""
    assert is_below(uri, folder), (uri, folder)
    return uri[len(folder.rstrip("/")) + 1 :]
