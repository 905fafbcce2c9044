"""What a client of S3 is made from: the variables that boto3 reads too, by the same rules."""

from __future__ import annotations

import http.server
import os
import pickle
import threading
from pathlib import Path

import pytest

from cluster.errors import UsageError
from cluster.storage import aws, files, preflight, s3

ENDPOINT = "http://10.0.0.7:9000"
VARIABLES = (
    "AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_REGION AWS_DEFAULT_REGION AWS_CA_BUNDLE AWS_PROFILE"
    " AWS_DEFAULT_PROFILE AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE"
    " AWS_REQUEST_CHECKSUM_CALCULATION REQUESTS_CA_BUNDLE"
    " HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy"
).split()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        # Set first, so that what the code sets is taken back too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def boto3_client():
    import boto3

    return boto3.session.Session().client("s3")


def test_both_clients_take_the_endpoint_of_s3_and_the_region_of_aws_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://other:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", ENDPOINT)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-2")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    client = s3.file_system()
    assert client.region == "eu-west-1"
    theirs = boto3_client()
    assert (theirs.meta.endpoint_url, theirs.meta.region_name) == (ENDPOINT, "eu-west-1")
    assert aws.endpoint_url() == ENDPOINT
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    assert aws.endpoint_url() == "http://other:1"


def test_the_region_of_aws_default_region_is_taken_where_the_other_is_unset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-2")
    assert s3.file_system().region == "us-east-2" == boto3_client().meta.region_name


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "AWS_ENDPOINT_URL": ""}, "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.7"}, None),
        ({}, None),
    ],
)
def test_the_proxy_is_that_of_the_endpoints_scheme_unless_its_host_is_exempt(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], proxy: str | None
) -> None:
    for name, value in {"AWS_ENDPOINT_URL": ENDPOINT, **variables}.items():
        monkeypatch.setenv(name, value)
    assert aws.surroundings().proxy == proxy
    aws.check(aws.surroundings())


def test_a_client_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b"<Error><Code>NoSuchBucket</Code></Error>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid:9000")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        with pytest.raises(UsageError, match="there is no bucket 'cells'"):
            preflight.check_reachable("s3://cells")
        server.shutdown()
    assert asked and all(path.startswith("http://nowhere.invalid:9000/cells?") for path in asked)


@pytest.mark.parametrize("proxy", ["http://me:secret@proxy:3128", "socks5://proxy:1", "http://x"])
def test_a_proxy_of_another_form_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ENDPOINT)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UsageError, match="HTTPS_PROXY: .*NO_PROXY") as refused:
        preflight.check_readable("s3://bucket/key")
    assert "secret" not in str(refused.value)


def test_a_profile_that_is_nowhere_is_refused_and_the_known_ones_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "work")
    with pytest.raises(UsageError, match="AWS_PROFILE 'work': .*there is none in"):
        preflight.check_writable("s3://bucket/key")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text("[default]\n[profile lab]\nregion = eu-west-1\n[sso]\n")
    (tmp_path / ".aws/credentials").write_text("[home]\naws_access_key_id = x\n")
    with pytest.raises(UsageError, match="there are home, lab in"):
        files.exists("s3://bucket/key")
    for known in ("home", "lab", "default"):
        monkeypatch.setenv("AWS_PROFILE", known)
        aws.check(aws.surroundings())
    (tmp_path / "other").write_text("no section\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "other"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    with pytest.raises(UsageError, match="other: is not a configuration file"):
        aws.check(aws.surroundings())


def test_certificates_that_are_nowhere_and_an_endpoint_without_a_scheme_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, f"{tmp_path}/{name}.pem")
        with pytest.raises(UsageError, match=f"{name}.pem: there is no such file"):
            aws.check(aws.surroundings())
        (tmp_path / f"{name}.pem").write_text("")
    assert aws.surroundings().ca_bundle == f"{tmp_path}/AWS_CA_BUNDLE.pem"
    aws.check(aws.surroundings())
    for wrong in ("minio:9000", "http://me:a/secret@minio:9000", "http://minio:9000?key=secret"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", wrong)
        with pytest.raises(UsageError, match="AWS_ENDPOINT_URL: must be http://host:port") as found:
            aws.check(aws.surroundings())
        assert "secret" not in str(found.value)


def test_a_client_that_is_sent_or_stored_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ENDPOINT)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    stored = pickle.dumps(s3.file_system())
    assert b"the-key" not in stored and b"the-secret" not in stored
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
