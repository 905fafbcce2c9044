"""Downloads a weight file by https, from a server that nobody vouches for."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from http.client import HTTPMessage
from typing import IO
from urllib.parse import urlsplit

MAX_BYTES = 16 << 30
"""The largest file of a detector that we know has 3 GB."""
TIMEOUT_S = 10.0
"""For a connection, and for each part of an answer."""
MAX_SECONDS = 3600.0
_PIECE_BYTES = 1 << 20


def download(url: str, path: str, *, sha256: str = "") -> None:
    """Store the file of an https:// URL at the local `path`, whole or not at all. `sha256`: how its
    digest in hex begins, where it is known.

    Redirects are followed to https:// alone, and to another host only where it is no private
    address. `OSError` with the reason for everything that fails, `ValueError` where the file is not
    one of tensors.
    """
    from detector.tensor_file import read_tensors

    os.makedirs(os.path.dirname(path), exist_ok=True)
    # The suffix decides how the file is read, so it keeps its name.
    folder = tempfile.mkdtemp(prefix=".partial-", dir=os.path.dirname(path))
    partial = os.path.join(folder, os.path.basename(path))
    try:
        try:
            found = _fetch(url, partial)
        except urllib.error.HTTPError as error:
            # It has the connection, which would stay open.
            with error:
                raise OSError(f"the server answered {error.code}, {error.reason}") from None
        if not found.startswith(sha256):
            begin = found[: max(8, len(sha256))]
            raise OSError(f"its sha256 is {begin}..., its name says {sha256}")
        read_tensors(partial)
        os.replace(partial, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(url: str, path: str) -> str:
    """The sha256 of what is now at `path`."""
    digest, count, began = hashlib.sha256(), 0, time.monotonic()
    opener = urllib.request.build_opener(_HttpsAlone())
    with opener.open(url, timeout=TIMEOUT_S) as answer, open(path, "wb") as file:
        given = answer.headers.get("Content-Length", "")
        length = int(given) if given.isdecimal() else None
        if (length or 0) > MAX_BYTES:
            raise OSError(f"it has {length} bytes, {MAX_BYTES} are allowed")
        while piece := answer.read(_PIECE_BYTES):
            count += len(piece)
            if count > MAX_BYTES:
                raise OSError(f"it has more than the {MAX_BYTES} bytes that are allowed")
            if time.monotonic() - began > MAX_SECONDS:
                raise OSError(f"{count} bytes came in {MAX_SECONDS:g} s, then it was given up")
            digest.update(piece)
            file.write(piece)
    if length is not None and count != length:
        raise OSError(f"the connection was cut after {count} of {length} bytes")
    return digest.hexdigest()


class _HttpsAlone(urllib.request.HTTPRedirectHandler):
    """Messages name the host alone: behind it a redirect may have a signature."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        why, target = "", urlsplit(newurl)
        if target.scheme != "https" or target.hostname is None:
            why = f"{target.scheme}://{target.hostname}, which is not https"
        elif target.hostname != urlsplit(req.full_url).hostname and not _is_public(target.hostname):
            why = f"{target.hostname}, a private address; download the file yourself"
        if why:
            fp.close()
            raise urllib.error.URLError(f"it leads on to {why}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_public(host: str) -> bool:
    """Whether all addresses of a host are of the internet; also where it is not known here, but
    perhaps by a proxy.
    """
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except OSError:
        return True
    addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
    return all(ipaddress.ip_address(address).is_global for address in addresses)
