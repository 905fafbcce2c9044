"""S3 and its failures: the client, the retries, the meaning of errors, and reads that are complete.

Observed with pyarrow 25: its client retries after 5xx answers, resets, stalls and bodies that end
before their Content-Length. It gives up at once on 502 and 504 with an error document and on XML
that it cannot parse. It does not notice a body that is shorter than requested.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.storage import aws
from cluster.storage.s3_requests import keys, put_once

__all__ = ["ENVIRONMENT", "cause", "file_system", "hasty_file_system", "keys", "list_error"]
__all__ += ["put_once", "read_range", "retry"]

ENVIRONMENT: str = aws.PREFIX
"""Prefix of the environment variables with the endpoint and the credentials."""
# A pattern in pyarrow's message (in capitals where pyarrow knows the code) and its meaning for the
# user. The first match counts.
_CAUSES = (
    (
        "NO_SUCH_BUCKET",
        (
            "there is no bucket {bucket!r} at {endpoint}; create it or check its name and"
            " AWS_ENDPOINT_URL"
        ),
    ),
    (
        "INVALID_ACCESS_KEY_ID|UNRECOGNIZED_CLIENT",
        "{endpoint} does not know this access key; check AWS_ACCESS_KEY_ID",
    ),
    (
        "SIGNATURE_DOES_NOT_MATCH",
        "{endpoint} knows the access key, but the secret is wrong; check AWS_SECRET_ACCESS_KEY",
    ),
    (
        "ExpiredToken|EXPIRED_TOKEN|TokenRefreshRequired",
        "the credentials have expired; renew them (a temporary key needs its AWS_SESSION_TOKEN)",
    ),
    (
        "InvalidToken|INVALID_CLIENT_TOKEN_ID",
        (
            "{endpoint} does not accept the session token; check AWS_SESSION_TOKEN, and unset it"
            " for a permanent key"
        ),
    ),
    (
        "REQUEST_TIME_TOO_SKEWED|REQUEST_EXPIRED",
        "this machine's clock and that of {endpoint} differ by minutes; set the clock",
    ),
    (
        "Redirect|AuthorizationHeaderMalformed|HTTP status 30",
        "{endpoint} has no {bucket!r} in this region; check AWS_REGION and AWS_ENDPOINT_URL",
    ),
    (
        "HTTP status (411|501)|SHA256Mismatch",
        (
            "{endpoint} does not accept checksums after the body of an upload; set"
            " AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
        ),
    ),
    (
        "ACCESS_DENIED|HTTP status 40[13]",
        "{endpoint} denies access; check the AWS_ credentials and their rights to {bucket!r}",
    ),
    (
        "curlCode: (35|53|58|60|77)",
        (
            "no TLS connection to {endpoint}; check http:// or https:// in AWS_ENDPOINT_URL and the"
            " server's certificate"
        ),
    ),
    (
        "NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT",
        "{endpoint} does not answer; check AWS_ENDPOINT_URL and that the server is running",
    ),
    (
        "SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|HTTP status (429|5)",
        "{endpoint} is overloaded or unhealthy ({reason}); see its log",
    ),
    (
        "cut short",
        (
            "{endpoint} or a proxy in front of it sends incomplete answers ({reason}); check"
            " AWS_ENDPOINT_URL and the proxy"
        ),
    ),
    (
        "RESOURCE_NOT_FOUND|XML_ERROR|HTTP status 40.*List.*: (No response body.)?$",
        "the server at {endpoint} is not S3; check AWS_ENDPOINT_URL",
    ),
)
_OTHER_CAUSE = "{reason}; check AWS_ENDPOINT_URL, AWS_REGION and the credentials"
# Errors that may be temporary.
_TEMPORARY = re.compile(
    "NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
    "|XML_ERROR|cut short|HTTP status (-1|408|429|500|502|503|504)"
)
# Answers to HEAD and to GET carry no code: pyarrow reports "denied" or "bad request" where a LIST
# gives the reason.
_WITHOUT_CODE = re.compile("ACCESS_DENIED|HTTP status 4")
_NOWHERE = ".list-check"
# Two different bytes: the last byte of the content can equal one of them, not both.
MARKS = (0xA5, 0x5A)
Result = TypeVar("Result")


class Patience(NamedTuple):
    """How long an operation on S3 is retried. It ends within `again_seconds` plus twice the time of
    the client's own attempts.
    """

    attempts: int
    """Attempts of the client at one request, with random pauses of up to 1, 2, 4, 8, 16, 20, 20,
    ... s between them: 45 s on average before the tenth.
    """
    connect_seconds: float
    stall_seconds: float
    """The client closes a connection without traffic after this time, or up to 6 s later where
    bytes had arrived: curl takes a mean over its last seconds.
    """
    again_seconds: float
    """`retry` restarts a whole operation (a read, an upload) until this time after its first
    failure, with pauses of 0.5 to 10 s.
    """


# Three attempts, pyarrow's default, do not survive a minute of 503 answers.
PATIENT = Patience(attempts=10, connect_seconds=10, stall_seconds=20, again_seconds=60)
# For preflight checks: gives up on a dead endpoint within seconds.
IMPATIENT = Patience(attempts=2, connect_seconds=3, stall_seconds=4, again_seconds=0)


def file_system() -> pafs.S3FileSystem:
    """The client for work: it survives an outage of about a minute."""
    return _client(PATIENT)


def hasty_file_system() -> pafs.S3FileSystem:
    """The client for preflight checks: it gives up on a dead endpoint within seconds."""
    return _client(IMPATIENT)


def _client(patience: Patience) -> pafs.S3FileSystem:
    """The client for the environment of this moment; one per state of the environment."""
    return _make_client(aws.surroundings(), patience)


@lru_cache(maxsize=8)
def _make_client(found: aws.Surroundings, patience: Patience) -> pafs.S3FileSystem:
    aws.check(found)
    settings = dict(found.settings)
    return pafs.S3FileSystem(
        # pyarrow itself reads AWS_ENDPOINT_URL only for a file system made from a URI.
        endpoint_override=aws.endpoint_url(),
        region=settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION") or None,
        proxy_options=found.proxy,
        tls_ca_file_path=found.ca_bundle,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=patience.attempts),
        # Upload objects below 10 MiB in one request instead of three.
        allow_delayed_open=True,
        connect_timeout=patience.connect_seconds,
        request_timeout=patience.stall_seconds,
    )


def retry(operation: Callable[[], Result]) -> Result:
    """The result of `operation`, repeated while its `OSError` may be temporary and `PATIENT`
    allows.
    """
    pause, deadline = 0.5, None
    while True:
        try:
            return operation()
        except OSError as error:
            deadline = deadline or time.monotonic() + PATIENT.again_seconds
            if not _TEMPORARY.search(str(error)) or time.monotonic() + pause > deadline:
                raise
        # Many workers fail at the same moment; they should not all retry at the same moment.
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 10)


def read_range(file: pa.NativeFile, start: int, count: int) -> pa.Buffer:
    """Exactly `count` bytes, one at least, of an object from byte `start` on. `OSError` where the
    answer was shorter.

    For a short answer pyarrow still reports `count` bytes; the rest of the buffer keeps its old
    content. So the last byte is set to a mark before the read. Where the mark is still there, the
    read is repeated with the other mark.
    """
    buffer = pa.allocate_buffer(count)
    content = memoryview(buffer).cast("B")
    for mark in MARKS:
        content[-1] = mark
        file.seek(start)
        try:
            received = file.readinto(buffer)
        except OSError as error:
            if re.search("NO_SUCH_KEY|RESOURCE_NOT_FOUND", str(error)):
                raise FileNotFoundError(f"deleted while it was open: {error}") from error
            raise
        if received == count and content[-1] != mark:
            return buffer
    raise OSError(f"the answer to a request for {count} bytes was cut short")


def list_error(path: str) -> OSError | None:
    """The error of one hasty LIST below bucket/key; None where the bucket answers. Unlike HEAD and
    GET a LIST gives the reason.
    """
    try:
        # Of a name that is nowhere: pyarrow would list the whole folder, a million keys in 40 s.
        hasty_file_system().get_file_info(
            pafs.FileSelector(f"{path.rstrip('/')}/{_NOWHERE}", allow_not_found=False)
        )
    except FileNotFoundError:
        # The bucket answered and has nothing under this key; the caller judges that.
        pass
    except OSError as error:
        return error
    return None


def cause(path: str, error: OSError) -> str:
    """Why an operation on bucket/key failed and the remedy, as the rest of a sentence."""
    if _WITHOUT_CODE.search(str(error)):
        error = list_error(path) or error
    meanings = (meaning for pattern, meaning in _CAUSES if re.search(pattern, str(error)))
    meaning = next(meanings, _OTHER_CAUSE)
    endpoint = (aws.endpoint_url() or "AWS S3").rsplit("@", 1)[-1]
    return meaning.format(
        endpoint=endpoint, bucket=path.split("/", 1)[0], reason=" ".join(str(error).split())[:300]
    )
