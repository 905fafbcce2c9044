"""A download is whole or nothing, whatever the server does."""

from __future__ import annotations

import datetime
import hashlib
import http.server
import io
import ipaddress
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.runs import weight_download
from cluster.runs.weight_download import download


def weights() -> bytes:
    sink = io.BytesIO()
    torch.save({"a": torch.arange(3)}, sink)
    return sink.getvalue()


CONTENT = weights()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        port = self.server.server_address[1]
        targets = {
            "/again.pth": f"https://localhost:{port}/good.pth",
            "/plain.pth": f"http://localhost:{port}/good.pth?signature=sesame",
            "/private.pth": f"https://127.0.0.1:{port}/good.pth?signature=sesame",
            "/metadata.pth": "https://169.254.169.254/latest?signature=sesame",
            "/file.pth": "file:///etc/passwd",
            "/round.pth": f"https://localhost:{port}/round.pth",
        }
        if self.path in targets:
            self.send_response(302)
            self.send_header("Location", targets[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        lengths = {"/cut.pth": len(CONTENT) + 1, "/large.pth": 1 << 50, "/endless.pth": None}
        length = lengths.get(self.path, len(CONTENT))
        self.send_response(404 if self.path == "/none.pth" else 200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        content = b"<html>not found</html>" if self.path == "/page.pth" else CONTENT
        self.wfile.write(content.ljust(len(CONTENT)))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of localhost and 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = serialization.Encoding.PEM
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, *plain))
    return path


@pytest.fixture
def server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """https://localhost:port, whose certificate this process trusts."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as served:
        served.socket = context.wrap_socket(served.socket, server_side=True)
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"https://localhost:{served.server_address[1]}"
        served.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["good", "again", "endless"])
def test_a_file_is_stored_whole(name: str, server: str, tmp_path: Path) -> None:
    path = tmp_path / "cache" / f"{name}.pth"
    download(f"{server}/{name}.pth", str(path), sha256=DIGEST[:8])
    assert path.read_bytes() == CONTENT and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none", "404"),
        ("cut", f"cut after {len(CONTENT)} of {len(CONTENT) + 1} bytes"),
        ("large", f"it has {1 << 50} bytes, {16 << 30} are allowed"),
        ("page", "cannot be read"),
        ("plain", "it leads on to http://localhost, which is not https"),
        ("private", "it leads on to 127.0.0.1, a private address"),
        ("metadata", "it leads on to 169.254.169.254, a private address"),
        ("file", "is not allowed"),
        ("round", "redirect"),
    ],
)
def test_nothing_is_stored_where_anything_fails(
    name: str, why: str, server: str, tmp_path: Path
) -> None:
    with pytest.raises((OSError, ValueError), match=why) as caught:
        download(f"{server}/{name}.pth", f"{tmp_path}/{name}.pth")
    assert "sesame" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_the_limits_count_what_comes_and_not_what_is_announced(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match=f"its sha256 is {DIGEST[:8]}..., its name says 0676ba61"):
        download(f"{server}/good.pth", f"{tmp_path}/a.pth", sha256="0676ba61")
    monkeypatch.setattr(weight_download, "MAX_SECONDS", 0.0)
    with pytest.raises(OSError, match="bytes came in 0 s, then it was given up"):
        download(f"{server}/good.pth", f"{tmp_path}/a.pth")
    monkeypatch.setattr(weight_download, "MAX_BYTES", 100)
    with pytest.raises(OSError, match="more than the 100 bytes"):
        download(f"{server}/endless.pth", f"{tmp_path}/a.pth")
    assert os.listdir(tmp_path) == []
