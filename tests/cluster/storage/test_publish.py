"""Files that are written once, and large files: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.errors import PlainError
from cluster.storage import files, publish
from cluster.storage.publish import staged, write_once
from tests.support.faulty_s3 import FaultyS3, Rule


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")


def test_of_two_writers_the_first_one_wins(root: str) -> None:
    assert write_once(f"{root}/a/b.bin", b"first")
    assert not write_once(f"{root}/a/b.bin", b"second")
    assert files.read_bytes(f"{root}/a/b.bin") == b"first"
    assert files.list_names(f"{root}/a") == ["b.bin"]


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
def test_a_store_without_conditional_writes_gets_a_plain_one(
    bucket: str, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    rule = Rule("answer", method="PUT", path="a.bin", status=status, code=code)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert write_once(f"{bucket}/a.bin", b"first")
        assert files.read_bytes(f"{bucket}/a.bin") == b"first"
    assert rule.fired == 1


@pytest.mark.parametrize("fault", ["answer", "reset", "lost"])
def test_a_write_whose_answer_is_lost_is_repeated(
    bucket: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    rule = Rule(fault, method="PUT", path="a.bin")
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        write_once(f"{bucket}/a.bin", b"first")
        assert files.read_bytes(f"{bucket}/a.bin") == b"first"
    assert rule.fired == 1


def test_a_write_that_is_denied_is_one_plain_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Rule("answer", method="PUT", path="a.bin", times=1e9, status=403, code="AccessDenied")
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(PlainError, match="a.bin: cannot be written: "):
            write_once(f"{bucket}/a.bin", b"first")


def test_a_large_file_is_seen_when_it_is_whole(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "COPY_BYTES", 5)
    with staged(f"{root}/a/large.txt") as path, open(path, "w") as file:
        file.write("0123456789abc")
        assert not files.exists(f"{root}/a/large.txt")
    assert files.read_bytes(f"{root}/a/large.txt") == b"0123456789abc"
    assert not os.path.exists(path) and files.list_names(f"{root}/a") == ["large.txt"]
    if not root.startswith("s3://"):
        plain = Path(root, "a/plain.txt")
        files.write_bytes(str(plain), b"")
        assert plain.stat().st_mode == Path(root, "a/large.txt").stat().st_mode


def test_after_an_error_nothing_is_published(root: str) -> None:
    with (
        pytest.raises(KeyError),
        staged(f"{root}/a/large.txt") as path,
        open(path, "w") as file,
    ):
        file.write("half")
        raise KeyError
    assert not os.path.exists(path) and not files.exists(f"{root}/a/large.txt")


def test_a_listing_comes_page_by_page_in_order(bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    name = bucket.removeprefix("s3://")
    # Of moto, as of S3, a page has 1,000 keys.
    for number in range(1010):
        client.put_object(Bucket=name, Key=f"a/{number:04d}.jpg", Body=b"x" * (number % 3))
    client.put_object(Bucket=name, Key="a/", Body=b"")
    client.put_object(Bucket=name, Key="ab.jpg", Body=b"")
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        before = os.environ["AWS_ENDPOINT_URL"]
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        try:
            entries = files.iterate_entries(f"{bucket}/a")
            first = next(entries)
            assert len(proxy.requests) == 1
            listed = [first, *entries]
        finally:
            os.environ["AWS_ENDPOINT_URL"] = before
        assert len(proxy.requests) == 2
    assert [entry.uri for entry in listed] == [f"{bucket}/a/{n:04d}.jpg" for n in range(1010)]
    assert [entry.size for entry in listed[:3]] == [0, 1, 2]
    # As the other listing, of which all is in memory.
    assert listed == files.list_entries(f"{bucket}/a")


def test_a_listing_that_fails_is_one_plain_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Rule("answer", method="GET", times=1e9, status=403, code="AccessDenied")
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], rule) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(PlainError, match="cannot be listed: .*denies access"):
            list(files.iterate_entries(f"{bucket}/a"))


def test_a_listing_of_no_bucket_is_one_plain_line(s3: str) -> None:
    with pytest.raises(PlainError, match="there is no bucket 'no-such-bucket'"):
        list(files.iterate_entries("s3://no-such-bucket/a"))


def test_a_dead_endpoint_is_one_plain_line(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    from cluster.storage import s3_requests

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3_requests, "ATTEMPTS", 1)
    with pytest.raises(PlainError, match="cannot be listed: .* does not answer"):
        list(files.iterate_entries("s3://bucket/a"))
