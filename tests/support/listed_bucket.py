"""An S3 server with a bucket of as many keys as one likes, that can only be listed. It makes each
page from its number, so it needs no memory.

with ListedBucket(1_000_000) as endpoint:
    os.environ["AWS_ENDPOINT_URL"] = endpoint  # s3://bucket/pictures
"""

from __future__ import annotations

import http.server
import multiprocessing
from multiprocessing.connection import Connection
from urllib.parse import parse_qs, urlsplit

PAGE = 1000
PREFIX = "pictures/"
_ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;0&quot;</ETag><Size>102400</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_RESULT = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult'
    ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><KeyCount>{}</KeyCount>'
    "<IsTruncated>{}</IsTruncated>{}{}</ListBucketResult>"
)


class ListedBucket:
    """The server is a process of its own, so that its work is not counted as that of who lists."""

    def __init__(self, keys: int):
        self.keys = keys

    def __enter__(self) -> str:
        here, there = multiprocessing.get_context("spawn").Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_serve, args=(self.keys, there), daemon=True)
        self.process.start()
        return f"http://127.0.0.1:{here.recv()}"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()


def page_of(keys: int, query: dict[str, list[str]]) -> str:
    """The answer to a LIST; nothing lies below other prefixes."""
    if not PREFIX.startswith(query.get("prefix", [""])[0]):
        keys = 0
    start = int(query.get("continuation-token", ["0"])[0])
    count = min(PAGE, int(query.get("max-keys", [str(PAGE)])[0]), keys - start)
    entries = "".join(_ENTRY.format(f"{PREFIX}{n:09d}.jpg") for n in range(start, start + count))
    more = start + count < keys
    token = f"<NextContinuationToken>{start + count}</NextContinuationToken>" if more else ""
    return _RESULT.format(count, str(more).lower(), token, entries)


def _serve(keys: int, port: Connection) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            self._answer(200 if "list-type" in asked else 404, page_of(keys, asked).encode())

        def do_HEAD(self) -> None:
            self._answer(404, b"")

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_address[1])
    server.serve_forever()
