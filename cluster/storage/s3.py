"""S3 when it fails: the client, what is tried again and for how long, what an error means, and
reads that are whole.

Seen with pyarrow 25: its client makes a request again after 5xx answers, resets, stalls and bodies
that end before their Content-Length. It gives up at once on 502 and 504 with an error document and
on XML that cannot be parsed. It does not notice a body that is shorter than asked for.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

# What pyarrow's messages hold, in capitals where it knows the code, and what that means to a
# person. The first that fits counts.
CAUSES = (
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
        "{endpoint} knows the access key, the secret does not fit it; check AWS_SECRET_ACCESS_KEY",
    ),
    (
        "ExpiredToken|EXPIRED_TOKEN|TokenRefreshRequired",
        "the credentials have expired; renew them (a temporary key has its AWS_SESSION_TOKEN)",
    ),
    (
        "InvalidToken|INVALID_CLIENT_TOKEN_ID",
        (
            "{endpoint} does not accept the session token; check AWS_SESSION_TOKEN, a permanent key"
            " has none"
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
            "{endpoint} takes no checksums behind uploads; set"
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
        "{endpoint} is overloaded or ill ({reason}); see its log",
    ),
    (
        "cut short",
        (
            "{endpoint} or a proxy before it sends incomplete answers ({reason}); check"
            " AWS_ENDPOINT_URL and the proxy"
        ),
    ),
    (
        "RESOURCE_NOT_FOUND|XML_ERROR|HTTP status 40.*List.*: (No response body.)?$",
        "what answers at {endpoint} is not S3; check AWS_ENDPOINT_URL",
    ),
)
OTHER_CAUSE = "{reason}; check AWS_ENDPOINT_URL, AWS_REGION and the credentials"
# What may be otherwise in a moment.
PASSING = re.compile(
    "NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|XML_ERROR|cut"
    " short|HTTP status (-1|408|429|500|502|503|504)"
)
# Answers to HEAD and to GET carry no code: pyarrow sees "denied" or "bad request" where a LIST
# names the reason.
WITHOUT_CODE = re.compile("ACCESS_DENIED|HTTP status 4")
# Two that differ: the last byte of the content can be one of them, not both.
MARKS = (0xA5, 0x5A)
Result = TypeVar("Result")


class Patience(NamedTuple):
    """How long an operation on S3 is tried. It ends within `again_seconds` and twice what the
    client's own attempts take.
    """

    attempts: int
    """Of one request, by the client, with random pauses of up to 1, 2, 4, 8, 16, 20, 20, ... s in
    between: 45 s on average before the tenth.
    """
    connect_seconds: float
    stall_seconds: float
    """A connection on which nothing moves is given up after so long, up to 6 s later where bytes
    had moved: curl takes a mean over the last.
    """
    again_seconds: float
    """A whole operation (a read, an upload) is begun again until so long after its first failure,
    with pauses of 0.5 to 10 s.
    """


# Three attempts, pyarrow's default, lose to a minute of 503 answers.
PATIENT = Patience(attempts=10, connect_seconds=10, stall_seconds=20, again_seconds=60)
# For preflights: it gives up on a dead endpoint within seconds.
IMPATIENT = Patience(attempts=2, connect_seconds=3, stall_seconds=4, again_seconds=0)


def endpoint_url() -> str | None:
    """None stands for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def client(patience: Patience) -> pafs.S3FileSystem:
    """The client for the AWS_ environment as it is now, one for each state of it."""
    # The client's new way to upload, chunks with a checksum behind them, is refused with 411 by
    # Ceph and with 501 by others. Who has set the variable keeps it. It is set for the process,
    # because Ray writes to the same storage with clients of its own.
    if ".amazonaws." not in (endpoint_url() or ".amazonaws."):
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return make_client(
        tuple(
            sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
        ),
        patience,
    )


@lru_cache(maxsize=8)
def make_client(environment: tuple[tuple[str, str], ...], patience: Patience) -> pafs.S3FileSystem:
    settings = dict(environment)
    return pafs.S3FileSystem(
        # pyarrow reads AWS_ENDPOINT_URL by itself only where a filesystem is made from a URI.
        endpoint_override=settings.get("AWS_ENDPOINT_URL_S3")
        or settings.get("AWS_ENDPOINT_URL")
        or None,
        region=settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION") or None,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=patience.attempts),
        # Objects below 10 MiB go up in one request instead of three.
        allow_delayed_open=True,
        connect_timeout=patience.connect_seconds,
        request_timeout=patience.stall_seconds,
    )


def patiently(operation: Callable[[], Result]) -> Result:
    """What `operation` gives, begun again while its `OSError` may pass and `PATIENT` allows."""
    pause, deadline = 0.5, None
    while True:
        try:
            return operation()
        except OSError as error:
            deadline = deadline or time.monotonic() + PATIENT.again_seconds
            if not PASSING.search(str(error)) or time.monotonic() + pause > deadline:
                raise
        # Many workers fail at once; they should not all come back at once.
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 10)


class FetchedFile:
    """A file of `size` bytes for `pyarrow.PythonFile`. `fetch(start, count)` gives every byte asked
    for or raises.
    """

    closed = False

    def __init__(self, size: int, fetch: Callable[[int, int], pa.Buffer]) -> None:
        self.size, self.fetch, self.position = size, fetch, 0

    def close(self) -> None:
        self.closed = True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        )
        return self.position

    def read(self, count: int = -1) -> bytes:
        return self.read_buffer(count).to_pybytes()

    def read_buffer(self, count: int = -1) -> pa.Buffer:
        left = max(0, self.size - self.position)
        count = left if count < 0 else min(count, left)
        buffer = self.fetch(self.position, count) if count else pa.py_buffer(b"")
        self.position += count
        return buffer


def read_range(file: pa.NativeFile, start: int, count: int) -> pa.Buffer:
    """Bytes `start` to `start + count`, one at least, of an object. `OSError` when what came was
    shorter.

    pyarrow says then that it read `count` bytes, and behind the last one that came stands what was
    in memory before. So the last byte is marked beforehand; who finds the mark again reads once
    more, with the other one.
    """
    buffer = pa.allocate_buffer(count)
    content = memoryview(buffer).cast("B")
    for mark in MARKS:
        content[-1] = mark
        file.seek(start)
        try:
            came = file.readinto(buffer)
        except OSError as error:
            if re.search("NO_SUCH_KEY|RESOURCE_NOT_FOUND", str(error)):
                raise FileNotFoundError(f"deleted while it was open: {error}") from error
            raise
        if came == count and content[-1] != mark:
            return buffer
    raise OSError(f"the answer to a request for {count} bytes was cut short")


def put(filesystem: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """An object is seen when its upload is complete, not before."""
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def list_error(path: str) -> OSError | None:
    """What one LIST of bucket/key, asked without patience, ends in: unlike HEAD and GET it names
    what is wrong.
    """
    try:
        client(IMPATIENT).get_file_info(
            pafs.FileSelector(path, recursive=False, allow_not_found=False)
        )
    except FileNotFoundError:
        # the bucket answered and holds nothing under this key, which is for the caller to judge
        pass
    except OSError as error:
        return error
    return None


def cause(path: str, error: OSError) -> str:
    """Why an operation on bucket/key failed and what to do, as the rest of a sentence."""
    if WITHOUT_CODE.search(str(error)):
        error = list_error(path) or error
    meaning = next(
        (meaning for sign, meaning in CAUSES if re.search(sign, str(error))), OTHER_CAUSE
    )
    endpoint = (endpoint_url() or "AWS S3").rsplit("@", 1)[-1]
    return meaning.format(
        endpoint=endpoint, bucket=path.split("/", 1)[0], reason=" ".join(str(error).split())[:300]
    )
