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
    for bad in ("", "gs://bucket/key", "s3://", "s3:///key"):
        with pytest.raises(UsageError, match="s3://bucket/key"):
            uris.absolute(bad)


def test_a_uri_with_a_secret_is_refused_and_the_message_does_not_repeat_it() -> None:
    with pytest.raises(UsageError) as caught:
        uris.absolute("s3://AKIAKEY:verysecret@bucket/key")
    assert "environment" in str(caught.value)
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


def test_names_below_a_folder() -> None:
    assert uris.is_below("s3://b/runs/a", "s3://b/runs")
    assert not uris.is_below("s3://b/runs-2/a", "s3://b/runs")
    assert not uris.is_below("/runs", "/runs")
    assert uris.is_below("/a", "/") and uris.relative_to("/a", "/") == "a"
    assert uris.relative_to("s3://b/runs/a/b.json", "s3://b/runs/") == "a/b.json"
