"""Read the lists of a large JSON object record by record: at any time a few MB of the text and one
record are in memory.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from cluster.errors import DataError

CHUNK = 4 << 20
MAX_VALUE = 256 << 20
"""Characters of one value. No record of an annotation file comes near; it limits how much is read
before a missing quotation mark is noticed.
"""
_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_lists(
    file: BinaryIO, uri: str, take: Mapping[str, Callable[[Any], None]], *, chunk: int = CHUNK
) -> tuple[set[str], str]:
    """Call `take[name]` with each record of the top-level list of that name, in the order of the
    file.

    Returns the names of all top-level lists (none when the file holds no object) and the sha256 of
    the file, which is read `chunk` bytes at a time. NaN and Infinity are read, as Python writes
    them. `DataError` with line and column where the text is not JSON, and for a list that comes
    twice.
    """
    window = _Window(file, uri, chunk)
    names: set[str] = set()
    if window.peek() != "{":
        if window.peek() != "[":
            window.value()
        return names, window.digest.hexdigest()
    for _ in window.items("}"):
        if window.peek() != '"':
            raise window.error("Expecting property name enclosed in double quotes", window.at)
        name = window.value()
        if window.peek() != ":":
            raise window.error("Expecting ':' delimiter", window.at)
        window.at += 1
        if window.peek() != "[":
            window.value()
            continue
        if name in names and name in take:
            raise DataError(f"{uri}: holds two lists named {name!r}; merge them")
        names.add(name)
        for _ in window.items("]"):
            record = window.value()
            if name in take:
                take[name](record)
    if window.peek():
        raise window.error("Extra data", window.at)
    return names, window.digest.hexdigest()


class _Window:
    """The part of a file's text that is in memory: `text`, read up to position `at`. `line` and
    `column`, from 1 on, are those of text[0].
    """

    def __init__(self, file: BinaryIO, uri: str, chunk: int):
        self.file, self.uri, self.chunk = file, uri, chunk
        self.text, self.at, self.line, self.column = "", 0, 1, 1
        self.digest, self.bytes_read = hashlib.sha256(), 0
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def more(self, size: int) -> bool:
        """Drop the text before `at` and append the next `size` bytes of the file. At its end return
        False and change nothing.
        """
        data = self.file.read(size)
        waiting = len(self.decoder.getstate()[0])
        try:
            text = self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            byte = self.bytes_read - waiting + error.start
            utf16 = not self.bytes_read and data[:2] in (b"\xff\xfe", b"\xfe\xff")
            reason = (
                "is UTF-16; save it as UTF-8"
                if utf16
                else f"not valid JSON: byte {byte} is not UTF-8; write or download it again"
            )
            raise DataError(f"{self.uri}: {reason}") from error
        if not data:
            return False
        self.digest.update(data)
        self.bytes_read += len(data)
        self.line, self.column = self.position(self.at)
        self.text, self.at = self.text[self.at :] + text, 0
        return True

    def peek(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while True:
            blanks = _BLANKS.match(self.text, self.at)
            self.at = blanks.end() if blanks else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more(self.chunk):
                return ""

    def value(self) -> Any:
        """The value that begins at `at`. Where the window ends inside the value, the window grows,
        by twice as much each time.
        """
        self.peek()
        size = self.chunk
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                # A number at the end of the window may go on with more digits, or with a "." or
                # "e-" that alone mean nothing.
                if len(self.text) - end > 2 or not self.more(size):
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > MAX_VALUE or not self.more(size):
                    raise self.error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self.error(
                    "a number of too many digits or too many brackets in each other", self.at
                ) from error
            size *= 2

    def items(self, close: str) -> Iterator[None]:
        """From an opening bracket to `close`: yields at the start of every item, which the caller
        reads.
        """
        self.at += 1
        if self.peek() == close:
            self.at += 1
            return
        while True:
            yield
            sign = self.peek()
            if sign not in (",", close):
                raise self.error("Expecting ',' delimiter", self.at)
            self.at += 1
            if sign == close:
                return

    def position(self, at: int) -> tuple[int, int]:
        """Line and column of text[at]."""
        lines = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) if lines else self.column + at
        return self.line + lines, column

    def error(self, message: str, at: int) -> DataError:
        line, column = self.position(at)
        return DataError(
            f"{self.uri}: not valid JSON at line {line}, column {column}: {message}; write or"
            " download it again"
        )
