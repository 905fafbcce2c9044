"""Chromium without a window, led through its DevTools protocol: a page is open until it shows what
a test waits for.

    with Browser(folder) as browser:
        with browser.open("http://127.0.0.1:5000") as page:
            page.wait_for("experiments")
            page.screenshot(path)
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

WINDOW = (1500, 5000)
"""Pixels. MLflow draws the charts that are in sight, so it is high enough for all of them."""
LIMIT_S = 900.0
CONTENT = "document.documentElement ? document.documentElement.outerHTML : ''"
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)


class Browser:
    def __init__(self, folder: Path):
        program = shutil.which("chromium")
        assert program, "these tests need Chromium: apt-get install chromium"
        command = [program, *OPTIONS, f"--user-data-dir={folder}/profile", "about:blank"]
        to_read, self.commands = os.pipe()
        self.answers, to_write = os.pipe()

        def as_chromium_expects() -> None:
            # It reads commands from 3 and writes answers to 4.
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        with open(folder / "browser.log", "wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(3, 4),
                preexec_fn=as_chromium_expects,
            )
        os.close(to_read)
        os.close(to_write)
        self.numbers, self.unread = itertools.count(1), b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=LIMIT_S)
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self) -> dict[str, Any]:
        """The next answer or event."""
        while b"\0" not in self.unread:
            more = os.read(self.answers, 1 << 16)
            assert more, "the browser ended"
            self.unread += more
        message, self.unread = self.unread.split(b"\0", 1)
        return json.loads(message)

    def open(self, address: str) -> Page:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        width, height = WINDOW
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        page.call("Page.navigate", url=address)
        return page


class Page:
    """Closed at the end of its context: in sight it would draw on."""

    def __init__(self, browser: Browser, target: str, session: str):
        self.browser, self.target, self.session = browser, target, session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, session=self.session, **parameters)

    def text(self) -> str:
        """All text of the page, also in drawings."""
        answer = self.call("Runtime.evaluate", expression=CONTENT)
        return re.sub(r"<[^>]*>", " ", answer["result"].get("value", ""))

    def wait_for(self, *words: str) -> None:
        until = time.monotonic() + LIMIT_S
        while missing := [word for word in words if word not in (text := self.text())]:
            assert time.monotonic() < until, f"{missing} are not in: {text}"
            time.sleep(0.5)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
