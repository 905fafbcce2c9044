"""What pyarrow's client of S3 cannot do: list a prefix page by page, and write an object only if it
is not there. boto3 does both; failures are `OSError`s with the words that `s3` knows.

pyarrow returns the whole listing at once: 0.4 KB of memory for each key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from cluster.storage import aws

ATTEMPTS, CONNECT_S, READ_S = 10, 10, 60
NO_CONDITIONS = ("NotImplemented", "InvalidArgument", "InvalidRequest", "MethodNotAllowed")
"""Answers of stores that do not know a conditional write."""


class Key(NamedTuple):
    """An object of a listing, `size` in bytes and `changed` in ns since 1970."""

    path: str
    """bucket/key."""
    size: int
    changed: int


def keys(path: str) -> Iterator[Key]:
    """The objects below bucket/prefix in the order of their keys, of which one page is in memory.
    The prefix is a folder: a/b has a/b/c and not a/bc.
    """
    bucket, _, prefix = path.partition("/")
    asked = {"Bucket": bucket, "Prefix": f"{prefix.rstrip('/')}/" if prefix else ""}
    while True:
        with _plain_errors():
            page = _client(aws.surroundings()).list_objects_v2(**asked)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                changed = int(entry["LastModified"].timestamp()) * 1_000_000_000
                yield Key(f"{bucket}/{entry['Key']}", entry["Size"], changed)
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def put_once(path: str, data: bytes) -> bool | None:
    """Write the object bucket/key if there is none. False: there is one, which stays. None: this
    store has no conditional writes, and nothing is written.
    """
    bucket, _, key = path.partition("/")
    with _plain_errors():
        try:
            _client(aws.surroundings()).put_object(
                Bucket=bucket, Key=key, Body=data, IfNoneMatch="*"
            )
        except _client_error() as error:
            code, status = _code(error)
            if status == 412:
                return False
            if code in NO_CONDITIONS or status == 501:
                return None
            raise
    return True


def _client_error() -> type[Exception]:
    from botocore.exceptions import ClientError

    return ClientError


def _code(error: Any) -> tuple[str, int]:
    """The code and the HTTP status of an answer."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", -1)
    return error.response.get("Error", {}).get("Code", ""), status


@contextmanager
def _plain_errors() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        yield
    except _client_error() as error:
        code, status = _code(error)
        raise OSError(f"{code} (HTTP status {status}): {error}") from error
    except NoCredentialsError as error:
        raise OSError(f"ACCESS_DENIED: {error}") from error
    except BotoCoreError as error:
        raise OSError(f"NETWORK_CONNECTION: {error}") from error


@lru_cache(maxsize=4)
def _client(found: aws.Surroundings) -> Any:
    """One for each state of the environment. boto3's clients may be shared by threads."""
    import boto3
    import botocore.session
    from botocore.config import Config

    aws.check(found)
    core = botocore.session.get_session()
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
    settings = dict(found.settings)
    config = Config(
        retries={"mode": "standard", "max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
    )
    # Without a region boto3 refuses to work, also at endpoints that have none.
    region = settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION")
    if region is None and aws.endpoint_url() is not None:
        region = "us-east-1"
    return boto3.Session(botocore_session=core).client("s3", config=config, region_name=region)


def _moment(text: str) -> datetime:
    """A time of an answer. Of the 81 us of CPU time of a key in a listing, botocore's own function,
    for any form, takes 34 us.
    """
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return parse_timestamp(text)
