"""S3 through a proxy that loses, delays and damages answers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import PlainError, UsageError
from cluster.storage import files, preflight, s3
from cluster.storage.fetched_file import open_fetched
from tests.support.faulty_s3 import FaultyS3, Rule

CONTENT = bytes(range(251)) * 40
LIST = {"method": "GET", "path": "list-type"}
# A proxy's own error page, which holds no S3 code.
PAGE = (
    b"<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n<center><h1>404 Not"
    b" Found</h1></center>\r\n</body>\r\n</html>\r\n"
)
# The client makes one attempt without pauses: retries are then up to `s3.retry`.
QUICK = s3.Patience(attempts=1, connect_seconds=2, stall_seconds=1, again_seconds=60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made. Time passes in them alone."""
    pauses: list[float] = []
    monkeypatch.setattr(
        s3, "time", SimpleNamespace(monotonic=lambda: 1000 + sum(pauses), sleep=pauses.append)
    )
    return pauses


Behind = Callable[..., FaultyS3]


@pytest.fixture
def behind(bucket: str, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    """Puts a proxy with these rules before the S3 server of `bucket`."""
    monkeypatch.setattr(s3, "PATIENT", QUICK)
    monkeypatch.setattr(s3, "IMPATIENT", QUICK)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with ExitStack() as stack:

        def start(*rules: Rule, **options: object) -> FaultyS3:
            proxy = stack.enter_context(FaultyS3(endpoint, *rules, **options))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            return proxy

        yield start


READ_FAULTS = ("answer", "reset", "reset body", "short", "truncate")
WRITE_FAULTS = ("answer", "reset", "lost")


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_read_is_whole_whatever_happens_on_the_way(
    bucket: str, behind: Behind, fault: str
) -> None:
    files.write_bytes(f"{bucket}/key", CONTENT)
    rule = Rule(fault, method="GET", path="/key", times=2)
    behind(rule)
    assert files.read_bytes(f"{bucket}/key") == CONTENT
    assert rule.fired == 2


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_range_is_whole_whatever_happens_on_the_way(
    bucket: str, behind: Behind, fault: str
) -> None:
    table = pa.table({"a": list(range(1000)), "b": [bytes([i % 256]) * 100 for i in range(1000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=250, compression="none")
    files.write_bytes(f"{bucket}/key", sink.getvalue())
    rule = Rule(fault, method="GET", path="/key", times=3)
    behind(rule)
    with files.open_input(f"{bucket}/key") as file:
        assert pq.ParquetFile(file, pre_buffer=True).read_row_group(2).equals(table.slice(500, 250))
    assert rule.fired == 3


@pytest.mark.parametrize("fault", WRITE_FAULTS)
@pytest.mark.parametrize("size", [1000, 11 << 20], ids=["one request", "parts"])
def test_an_upload_arrives_whole(bucket: str, behind: Behind, fault: str, size: int) -> None:
    data = (CONTENT * (size // len(CONTENT) + 1))[:size]
    rules = [Rule(fault, method="PUT"), Rule(fault, method="POST", path="uploadId")]
    behind(*rules)
    files.write_bytes(f"{bucket}/key", data)
    assert files.read_bytes(f"{bucket}/key") == data
    assert [rule.fired for rule in rules] == [1, int(size > 1000)]


@pytest.mark.parametrize("fault", (*READ_FAULTS, "gateway"))
def test_a_listing_is_whole(bucket: str, behind: Behind, fault: str) -> None:
    files.write_bytes(f"{bucket}/a/b", b"x")
    # A gateway's 502 with an S3 error document is one that pyarrow's client does not try again.
    rule = (
        Rule("answer", **LIST, status=502, code="BadGateway")
        if fault == "gateway"
        else Rule(fault, **LIST, times=2)
    )
    behind(rule)
    assert files.list_files(f"{bucket}/a") == [(f"{bucket}/a/b", 1)]
    assert rule.fired == rule.times


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_deletion_whose_answer_is_lost_is_done(bucket: str, behind: Behind, fault: str) -> None:
    for name in ("a", "folder/b", "folder/c"):
        files.write_bytes(f"{bucket}/{name}", b"x")
    rules = [Rule(fault, method="DELETE"), Rule(fault, method="POST", path="delete")]
    behind(*rules)
    files.delete_file(f"{bucket}/a")
    files.delete_folder(f"{bucket}/folder")
    assert files.list_files(bucket) == []
    assert [rule.fired for rule in rules] == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_folders_go_up_and_down_through_one_fault_in_five(
    bucket: str, behind: Behind, tmp_path, seed: int
) -> None:
    for number in range(20):
        files.write_bytes(f"{tmp_path}/up/{number}", CONTENT[number:])
    proxy = behind(
        errors=0.2, seed=seed, random_faults=("answer", "reset", "lost", "reset body", "short")
    )
    files.upload_folder(f"{tmp_path}/up", f"{bucket}/up", last="7")
    files.download_folder(f"{bucket}/up", f"{tmp_path}/down")
    for number in range(20):
        assert files.read_bytes(f"{tmp_path}/down/{number}") == CONTENT[number:]
    assert proxy.faults > 5


def test_the_client_tries_again_by_itself(
    bucket: str, behind: Behind, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PATIENT", QUICK._replace(attempts=3))
    files.write_bytes(f"{bucket}/key", CONTENT)
    behind(Rule("reset", method="GET", path="/key"))
    assert files.read_bytes(f"{bucket}/key") == CONTENT
    assert clock == []


def test_a_connection_that_stalls_is_given_up(bucket: str, behind: Behind) -> None:
    files.write_bytes(f"{bucket}/before", CONTENT)
    files.write_bytes(f"{bucket}/within", CONTENT)
    rules = [
        Rule("stall", method="GET", path="/before"),
        Rule("stall body", method="GET", path="/within"),
        Rule("stall", method="PUT", path="/up"),
    ]
    behind(*rules)
    # At once, because each waits for seconds.
    with ThreadPoolExecutor(3) as pool:
        upload = pool.submit(files.write_bytes, f"{bucket}/up", CONTENT)
        before, within = pool.map(files.read_bytes, (f"{bucket}/before", f"{bucket}/within"))
        upload.result()
    assert before == within == files.read_bytes(f"{bucket}/up") == CONTENT
    assert [rule.fired for rule in rules] == [1, 1, 1]
    # By the client, which waits for stall_seconds and the 6 s over which curl takes its mean, and
    # not by the proxy, which says nothing for 30.
    assert not any(rule.ended_stall for rule in rules)


@given(
    start=st.integers(0, len(CONTENT) + 10),
    count=st.integers(0, len(CONTENT) + 10),
    last=st.sampled_from([0, *s3.MARKS]),
)
@settings(max_examples=200, deadline=None)
def test_a_range_is_what_a_slice_is(start: int, count: int, last: int) -> None:
    content = CONTENT[:-1] + bytes([last])
    raw = pa.BufferReader(content)
    file = open_fetched(raw.size(), lambda start, count: s3.read_range(raw, start, count))
    file.seek(start)
    assert file.read(count) == content[start : start + count]
    assert file.tell() == max(start, min(start + count, len(content)))
    assert file.size() == len(content)


@pytest.mark.parametrize(("last", "requests"), [(0, 1), (s3.MARKS[0], 2), (s3.MARKS[1], 1)])
def test_a_last_byte_that_is_the_mark_costs_one_more_request(
    bucket: str, behind: Behind, last: int, requests: int
) -> None:
    content = CONTENT + bytes([last])
    files.write_bytes(f"{bucket}/key", content)
    proxy = behind()
    assert files.read_bytes(f"{bucket}/key") == content
    assert [method for method, _ in proxy.requests] == ["HEAD"] + ["GET"] * requests


def test_answers_that_stay_incomplete_end_in_an_error(
    bucket: str, behind: Behind, clock: list[float]
) -> None:
    files.write_bytes(f"{bucket}/key", CONTENT)
    proxy = behind(Rule("truncate", method="GET", path="/key", times=math.inf))
    with pytest.raises(
        PlainError,
        match=(
            rf"^{bucket}/key: cannot be read: {proxy.url} or a proxy in front of it sends"
            r" incomplete answers \(.*10040"
        ),
    ):
        files.read_bytes(f"{bucket}/key")


def test_patience_ends_with_one_line_that_names_the_place_and_the_cause(
    bucket: str, behind: Behind, clock: list[float]
) -> None:
    proxy = behind(Rule("answer", times=math.inf))
    with pytest.raises(PlainError) as caught:
        files.write_bytes(f"{bucket}/key", CONTENT)
    assert str(caught.value).startswith(
        f"{bucket}/key: cannot be written: {proxy.url} is overloaded or unhealthy ("
    )
    assert "SLOW_DOWN" in str(caught.value) and "\n" not in str(caught.value)
    assert not isinstance(caught.value, UsageError)
    # Pauses double from 0.5 s to 10 s, each drawn between half and the whole of that; none begins
    # that would end after the budget.
    wanted = [0.5, 1, 2, 4, 8] + [10] * (len(clock) - 5)
    assert all(whole / 2 <= pause <= whole for pause, whole in zip(clock, wanted, strict=True))
    assert QUICK.again_seconds - 10 <= sum(clock) <= QUICK.again_seconds
    assert len(proxy.requests) == len(clock) + 1


def test_what_will_not_pass_is_not_tried_again(
    bucket: str, behind: Behind, clock: list[float]
) -> None:
    behind(Rule("answer", method="PUT", times=math.inf, status=403, code="AccessDenied"))
    with pytest.raises(
        PlainError,
        match="cannot be written: .* denies access; check the AWS_ credentials and their rights",
    ):
        files.write_bytes(f"{bucket}/key", CONTENT)
    assert clock == []


def test_the_stated_budgets() -> None:
    # A dead or silent endpoint is known within about ten seconds: two attempts and a pause of at
    # most one.
    assert (
        s3.IMPATIENT.attempts * max(s3.IMPATIENT.connect_seconds, s3.IMPATIENT.stall_seconds) + 1
        <= 10
    )
    # Pauses of one request on average: half of 1 + 2 + 4 + 8 + 16 + 20 + 20 + 20 + 20.
    assert sum(min(2**n, 20) for n in range(s3.PATIENT.attempts - 1)) / 2 >= 45


ANSWERS = {
    "unknown key": (
        403,
        "InvalidAccessKeyId",
        "does not know this access key; check AWS_ACCESS_KEY_ID",
    ),
    "wrong secret": (
        403,
        "SignatureDoesNotMatch",
        "knows the access key, but the secret is wrong; check AWS_SECRET_ACCESS_KEY",
    ),
    "expired": (400, "ExpiredToken", "the credentials have expired; renew them"),
    "wrong token": (
        400,
        "InvalidToken",
        "does not accept the session token; check AWS_SESSION_TOKEN",
    ),
    "skewed clock": (403, "RequestTimeTooSkewed", "differ by minutes; set the clock"),
    "no right": (
        403,
        "AccessDenied",
        "denies access; check the AWS_ credentials and their rights to 'bucket-",
    ),
    "no bucket": (404, "NoSuchBucket", "there is no bucket 'bucket-"),
    "another region": (301, "PermanentRedirect", "in this region; check AWS_REGION"),
    "another region, signed": (
        400,
        "AuthorizationHeaderMalformed",
        "in this region; check AWS_REGION",
    ),
    "overloaded": (503, "SlowDown", "is overloaded or unhealthy"),
    "anything else": (
        400,
        "Unheard",
        "Unheard.*; check AWS_ENDPOINT_URL, AWS_REGION and the credentials",
    ),
}
# A page that parses as XML and comes with 200 is an empty listing to pyarrow; those of web
# applications do not parse.
PAGES = [
    (404, PAGE),
    (404, b'{"detail":"Not Found"}'),
    (404, b""),
    (405, PAGE),
    (400, PAGE),
    (200, b"<!doctype html><meta charset=utf-8><title>MLflow"),
]
PREFLIGHTS = pytest.mark.parametrize("check", [preflight.check_readable, preflight.check_writable])


@PREFLIGHTS
@pytest.mark.parametrize(("status", "code", "line"), ANSWERS.values(), ids=ANSWERS)
def test_preflights_tell_refusals_apart(
    bucket: str, behind: Behind, check: Callable[[str], None], status: int, code: str, line: str
) -> None:
    behind(Rule("answer", times=math.inf, status=status, code=code))
    with pytest.raises(UsageError, match=rf"^{bucket}/key: .*{line}") as caught:
        check(f"{bucket}/key")
    assert "\n" not in str(caught.value)


@PREFLIGHTS
@pytest.mark.parametrize(("status", "page"), PAGES)
def test_preflights_know_what_is_not_s3(
    bucket: str, behind: Behind, check: Callable[[str], None], status: int, page: bytes
) -> None:
    proxy = behind(Rule("answer", times=math.inf, status=status, body=page))
    with pytest.raises(
        UsageError,
        match=rf"^{bucket}/key: the server at {proxy.url} is not S3; check AWS_ENDPOINT_URL$",
    ):
        check(f"{bucket}/key")


@PREFLIGHTS
def test_preflights_do_not_wait_for_a_silent_endpoint(
    bucket: str, behind: Behind, check: Callable[[str], None]
) -> None:
    proxy = behind(Rule("stall", times=math.inf))
    with pytest.raises(
        UsageError,
        match=f"{proxy.url} does not answer; check AWS_ENDPOINT_URL and that the server is running",
    ):
        check(f"{bucket}/key")


@PREFLIGHTS
def test_preflights_know_an_endpoint_without_tls(
    bucket: str, behind: Behind, check: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", behind().url.replace("http:", "https:"))
    with pytest.raises(
        UsageError,
        match="no TLS connection to https://.*; check http:// or https:// in AWS_ENDPOINT_URL",
    ):
        check(f"{bucket}/key")


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (403, "AccessDenied", "denies access"),
        (411, "MissingContentLength", "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
    ],
)
def test_preflight_tries_a_write_and_says_why_not(
    bucket: str, behind: Behind, status: int, code: str, line: str
) -> None:
    behind(Rule("answer", method="PUT", times=math.inf, status=status, code=code))
    preflight.check_readable(bucket)
    with pytest.raises(
        UsageError, match=f"^{bucket}/new: the bucket can be listed but not written: .*{line}"
    ):
        preflight.check_writable(f"{bucket}/new")


OPERATIONS: dict[str, Callable[[str], object]] = {
    "read": files.read_bytes,
    "written": lambda uri: files.write_bytes(uri, b"x"),
    "looked up": files.exists,
    "listed": files.list_files,
    "deleted": files.delete_file,
}


@pytest.mark.parametrize("verb", OPERATIONS)
def test_credentials_that_expire_meanwhile_are_named(
    bucket: str, behind: Behind, verb: str
) -> None:
    files.write_bytes(f"{bucket}/key", CONTENT)
    behind(Rule("answer", times=math.inf, status=400, code="ExpiredToken"))
    with pytest.raises(
        PlainError,
        match=(
            f"^{bucket}/key: cannot be {verb}: the credentials have expired; renew .*; then run the"
            " command again$"
        ),
    ):
        OPERATIONS[verb](f"{bucket}/key")


def test_credentials_that_expire_in_an_open_file_are_named(bucket: str, behind: Behind) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": list(range(1000))}), sink)
    files.write_bytes(f"{bucket}/key", sink.getvalue())
    # The footer is read, the rows are not any more.
    behind(Rule("answer", method="GET", skip=1, times=math.inf, status=400, code="ExpiredToken"))
    with files.open_input(f"{bucket}/key") as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        with pytest.raises(
            PlainError, match="^s3://.*/key: cannot be read: the credentials have expired"
        ):
            parquet.read_row_group(0)


def test_an_object_deleted_while_it_is_open_is_missing(bucket: str, behind: Behind) -> None:
    files.write_bytes(f"{bucket}/key", CONTENT)
    behind()
    with files.open_input(f"{bucket}/key") as file:
        files.delete_file(f"{bucket}/key")
        with pytest.raises(FileNotFoundError, match="deleted while it was open"):
            file.read()


def test_uploads_are_as_every_server_takes_them(
    bucket: str, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION", raising=False)
    behind()
    files.write_bytes(f"{bucket}/key", CONTENT)
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    files.write_bytes(f"{bucket}/key", CONTENT)
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_supported"
    # AWS itself takes the newer way.
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    for endpoint in ("", "https://s3.eu-west-1.amazonaws.com"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        s3.file_system()
        assert "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ
