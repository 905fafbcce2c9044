"""Names of files and folders: an absolute local path or s3://bucket/key."""

from __future__ import annotations

import os
import posixpath

from cluster.errors import UsageError

S3 = "s3://"


def absolute(uri: str) -> str:
    """A relative local path (also with ~) made absolute; s3:// stays, without a trailing slash.
    `UsageError` for other schemes.
    """
    if not uri:
        raise UsageError("an empty path was given; give an absolute local path or s3://bucket/key")
    if uri.startswith(S3):
        bucket = uri[len(S3) :].split("/", 1)[0]
        if not bucket or "@" in bucket or ":" in bucket:
            # The URI itself is not repeated: what stands before an @ may be a secret.
            raise UsageError(
                "an s3:// URI must read s3://bucket/key; credentials and the endpoint belong in the"
                " environment (AWS_...)"
            )
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise UsageError(
            f"the scheme {uri.split('://')[0]}:// is not supported; give an absolute local path or"
            " s3://bucket/key"
        )
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def join(uri: str, *names: str) -> str:
    return posixpath.join(uri.rstrip("/") or "/", *names)
