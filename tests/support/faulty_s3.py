"""A reverse proxy in front of any S3 endpoint. It loses, delays and damages answers, the same ones
in each run.

    rule = Rule("reset", method="GET", path=r"\\.parquet", times=2)
    with FaultyS3("http://127.0.0.1:9000", rule) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url

    python tests/support/faulty_s3.py --target http://127.0.0.1:9000 --latency 0.02 --errors 0.01

It passes requests on byte for byte, with their Host, because a SigV4 signature covers it.
"""

from __future__ import annotations

import argparse
import http.client
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

HOP_BY_HOP = ("connection", "keep-alive")
HALVES = ("reset body", "stall body", "short", "truncate")
FAULTS = ("answer", "reset", "lost", "stall", *HALVES)


@dataclass
class Rule:
    """A fault for the requests of this method whose path and query match: the first `skip` of them
    are passed on, the next `times` meet the fault.

    answer      The target gets no request. The answer is `status` with `body`, or with an error
                document of this `code`.
    reset       The target gets no request. The connection is reset.
    lost        The target does what it was asked. The connection is reset instead of its answer.
    stall       The target gets no request. Nothing is sent for `seconds`, then the connection is
                closed.
    reset body  Half of the body is sent, then the connection is reset.
    stall body  Half of the body is sent, then nothing for `seconds`.
    short       Half of the body is sent, then the connection is closed. Content-Length is that of
                the whole.
    truncate    Half of the body is sent, with the Content-Length of the half.
    """

    fault: str
    method: str = ""
    path: str = ""
    skip: int = 0
    times: float = 1
    status: int = 503
    code: str = "SlowDown"
    body: bytes | None = None
    seconds: float = 30
    seen: int = field(default=0, init=False)
    ended_stall: bool = field(default=False, init=False)
    """Whether the proxy waited all `seconds`: the client did not give up, and the test did not end,
    before.
    """

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"{self.fault!r}: a fault is one of {', '.join(FAULTS)}")

    def applies(self, method: str, path: str) -> bool:
        if self.method not in ("", method) or not re.search(self.path, path):
            return False
        self.seen += 1
        return self.skip < self.seen <= self.skip + self.times

    @property
    def fired(self) -> int:
        return int(max(0, min(self.seen - self.skip, self.times)))


class FaultyS3:
    """The first rule that applies to a request decides. Of the requests without a rule, a share
    `errors`, drawn with `seed`, meets one of `random_faults`.
    """

    def __init__(
        self,
        target: str,
        *rules: Rule,
        latency: float = 0.0,
        errors: float = 0.0,
        random_faults: Sequence[str] = ("answer", "reset", "reset body", "short"),
        seed: int = 0,
        port: int = 0,
    ) -> None:
        parts = urlsplit(target)
        self.target = (parts.hostname or "", parts.port or 80)
        self.rules, self.latency, self.errors, self.random_faults = (
            list(rules),
            latency,
            errors,
            random_faults,
        )
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.requests: list[tuple[str, str]] = []
        """(method, path and query) of every request, in order of arrival."""
        self.faults = 0
        self.server = Server(("127.0.0.1", port), Handler)
        self.server.proxy = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def choose(self, method: str, path: str) -> Rule | None:
        with self.lock:
            self.requests.append((method, path))
            # Every rule counts every request, whichever rule decides.
            applying = [rule for rule in self.rules if rule.applies(method, path)]
            drawn = self.random.random() < self.errors
            if not applying and drawn:
                applying = [Rule(self.random.choice(list(self.random_faults)))]
            self.faults += bool(applying)
            return applying[0] if applying else None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultyS3

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients close connections on purpose here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without it the last packet of an answer waits 40 ms for the client's acknowledgement.
    disable_nagle_algorithm = True
    server: Server

    def forward(self) -> None:
        proxy = self.server.proxy
        body = self.read_body()
        if proxy.latency:
            time.sleep(proxy.latency)
        rule = proxy.choose(self.command, self.path)
        fault = rule.fault if rule else ""
        if rule and fault == "answer":
            return self.answer(
                rule.status,
                [("Content-Type", "application/xml")],
                error_document(rule.code) if rule.body is None else rule.body,
            )
        if rule and fault in ("reset", "stall"):
            return self.hang_up(rule)
        connection = http.client.HTTPConnection(*proxy.target, timeout=600)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body, encode_chunked=self.chunked)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        headers = [
            (name, value)
            for name, value in reply.getheaders()
            if name.lower() not in (*HOP_BY_HOP, "content-length", "transfer-encoding")
        ]
        if rule and fault == "lost":
            return self.hang_up(rule)
        if self.command == "HEAD" and "Content-Length" in reply.headers:
            headers.append(("Content-Length", reply.headers["Content-Length"]))
        if rule is None or self.command == "HEAD":
            return self.answer(reply.status, headers, content)
        half = content[: len(content) // 2]
        if fault == "truncate":
            return self.answer(reply.status, headers, half)
        self.answer(reply.status, headers, half, length=len(content))
        self.hang_up(rule)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    @property
    def chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def read_body(self) -> bytes:
        if not self.chunked:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers) and status != 204:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self, rule: Rule) -> None:
        self.close_connection = True
        if rule.fault.startswith("stall"):
            rule.ended_stall |= not self.server.proxy.closing.wait(rule.seconds)
        if rule.fault.startswith(("reset", "lost")):
            # No linger: the kernel sends a reset instead of closing in order.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The server's own shutdown would say goodbye first.
            self.rfile.close()
            self.connection.close()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def error_document(code: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>answered by'
        " the proxy</Message><RequestId>0</RequestId><HostId>0</HostId></Error>"
    ).encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target", required=True, help="URL of the endpoint behind, http://host:port"
    )
    parser.add_argument("--port", type=int, default=0, help="0 for any free one")
    parser.add_argument(
        "--latency", type=float, default=0.0, help="seconds before each request goes on"
    )
    parser.add_argument(
        "--errors", type=float, default=0.0, help="share 0..1 of requests that meet a fault"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    given = parser.parse_args()
    with FaultyS3(
        given.target, latency=given.latency, errors=given.errors, seed=given.seed, port=given.port
    ) as proxy:
        print(proxy.url, flush=True)
        # Both end it in order; a shell starts its background jobs with Ctrl-C ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{len(proxy.requests)} requests, {proxy.faults} faults")


if __name__ == "__main__":
    main()
