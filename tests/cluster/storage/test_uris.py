from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.storage import uris


def test_a_path_becomes_absolute_and_a_remote_uri_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert uris.absolute("a/../b") == f"{tmp_path}/b"
    assert uris.absolute("~/x") == "/home/me/x"
    assert uris.absolute("s3://bucket/key/") == "s3://bucket/key"
    assert uris.absolute("50% a?b#c:d/ä'x") == f"{tmp_path}/50% a?b#c:d/ä'x"


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("S3://bucket/Key", "s3://bucket/Key"),
        ("s3://bucket/key//", "s3://bucket/key"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a b%20?#c", "s3://bucket/a b%20?#c"),
        ("file:///data/a:b", "/data/a:b"),
        ("file:/data/../x", "/x"),
        ("FILE://localhost/data/", "/data"),
        ("//data///x", "/data/x"),
        ("/data/a:/b", "/data/a:/b"),
    ],
)
def test_another_spelling_of_the_same_place_becomes_the_plain_one(given: str, plain: str) -> None:
    assert uris.absolute(given) == plain == uris.absolute(plain)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "an empty path"),
        (" ", "an empty path"),
        ("gs://bucket/key", "the scheme gs://"),
        ("s3a://bucket/key", "the scheme s3a://"),
        ("https://bucket.s3.amazonaws.com/key", "the scheme https://"),
        ("s3://", "must have the form s3://bucket/key"),
        ("s3:///key", "must have the form s3://bucket/key"),
        ("s3://bucket//key", r"empty name .* write s3://bucket/key$"),
        ("s3://bucket/a//../b", r"write s3://bucket/b$"),
        ("s3://bucket/./x", r"write s3://bucket/x$"),
        ("s3://bucket/..", r"write s3://bucket$"),
        ("s3:/bucket/key", "^s3: without ://"),
        ("s3:bucket", "^s3: without ://"),
        ("S3:bucket", "^S3: without ://"),
        ("gs:/bucket", "^gs: without ://"),
        ("C:/data", "^C: without ://"),
        (":/data", "^: without ://"),
        ("./s3:/bucket", "a URI behind it"),
        ("/data/s3://bucket", "a URI behind it"),
        ("runs/S3:", "a URI behind it"),
        ("~nobody-has-this-name/x", r"write \./~nobody-has-this-name"),
        ("file://host/path", "without a host"),
        ("file:path", "without a host"),
        ("file:///a%20b", "without a host, %"),
        ("runs ", r"^'runs ': has a blank"),
        ("s3://bucket/key\n", r"^'s3://bucket/key\\n': has a blank or a line end"),
        (" /data", "^' /data': has a blank"),
        ("a\0b", "a zero byte"),
    ],
)
def test_a_name_that_may_mean_something_else_is_refused_in_one_line(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said) as refused:
        uris.absolute(given)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:verysecret@bucket/key",
        "s3://AKIAKEY:verysecret@bucket//key\n",
        "s3:/AKIAKEY:verysecret@bucket",
        "s3:AKIAKEY:verysecret@bucket",
        "runs/s3://AKIAKEY:verysecret@bucket",
        "file://AKIAKEY:verysecret@host/key",
        "https://AKIAKEY:verysecret@host/key",
    ],
)
def test_a_uri_with_a_secret_is_refused_and_the_message_does_not_repeat_it(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        uris.absolute(uri)
    assert "verysecret" not in str(caught.value) and "AKIAKEY" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("s3://bucket/key", True),
        ("s3://bucket", True),
        ("/data/train", False),
        # A folder may be named like a scheme or like a URI.
        ("s3", False),
        ("/data/s3://bucket", False),
        ("file:///data", False),
    ],
)
def test_only_a_uri_of_object_storage_is_remote(uri: str, remote: bool) -> None:
    assert uris.is_remote(uri) is remote


def test_a_key_of_a_listing_that_the_client_cannot_read_is_not_plain() -> None:
    for plain in ("s3://b/a/x.jpg", "s3://b/a/ v ", "/data//x", "s3://b"):
        assert uris.is_plain(plain)
    for odd in ("s3://b//x", "s3://b/a/./x", "s3://b/a/../x"):
        assert not uris.is_plain(odd)


def test_names_below_a_folder() -> None:
    assert uris.is_below("s3://b/runs/a", "s3://b/runs")
    assert not uris.is_below("s3://b/runs-2/a", "s3://b/runs")
    assert not uris.is_below("/runs", "/runs")
    assert uris.is_below("/a", "/") and uris.relative_to("/a", "/") == "a"
    assert uris.relative_to("s3://b/runs/a/b.json", "s3://b/runs/") == "a/b.json"


def test_a_job_writes_nothing_that_is_deleted_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0123"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    places = ("runs", "./runs", f"{package}/runs")
    for path in places:
        uris.refuse_job_folder("--storage", path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for path in places:
        with pytest.raises(UsageError, match=f"^--storage {path}: is on the node of this job"):
            uris.refuse_job_folder("--storage", path)
    for path in ("s3://cells/store", "/shared/store", "~/store"):
        uris.refuse_job_folder("--storage", path)
