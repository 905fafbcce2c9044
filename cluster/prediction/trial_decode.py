"""Decoding in a child process, for images of which one has killed a worker: with a segmentation
fault in a decoder, or for its memory. The child alone ends then.

Run as a program it is the child: it reads 8 bytes of length and an image from stdin, decodes it,
and answers one byte, again and again. The first byte says that it has begun.
"""

from __future__ import annotations

import os
import resource
import select
import struct
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO

from cluster.prediction.read_image import Fault

SECONDS = 120.0
"""For one image; a child that takes longer hangs."""
MEMORY = 8 << 30
"""Bytes of address space of the child: a decoder that wants more ends alone."""
_LENGTH = struct.Struct("<Q")


class TrialDecoder:
    """Says of one image after the other whether it can be decoded. Starts a new child after each
    death.
    """

    def __init__(self, *, max_pixels: int):
        self.max_pixels = max_pixels
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TrialDecoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def try_image(self, data: bytes) -> Fault | None:
        """None where the decoder survives, also where it refuses the image."""
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        with suppress(BrokenPipeError):
            child.stdin.write(_LENGTH.pack(len(data)))
            child.stdin.write(data)
            child.stdin.flush()
        if not select.select([child.stdout], [], [], SECONDS)[0]:
            self._end()
            return Fault(
                "kills_its_decoder", f"decoding it had not ended after {SECONDS:g} s; look at it"
            )
        if child.stdout.read(1):
            return None
        code = child.wait()
        self._end()
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Fault(
            "kills_its_decoder", f"the process that decodes it ends with {why}; leave the image out"
        )

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._child = subprocess.Popen(
                [sys.executable, "-m", "cluster.prediction.trial_decode", str(self.max_pixels)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            assert self._child.stdout is not None
            # It has imported its libraries: the time of an image counts from here.
            self._child.stdout.read(1)
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            child.wait()


def _serve(source: BinaryIO, answers: BinaryIO, max_pixels: int) -> None:
    from detector.image import ImageError, decode_image

    answers.write(b"+")
    answers.flush()
    while head := source.read(_LENGTH.size):
        data = source.read(_LENGTH.unpack(head)[0])
        with suppress(ImageError):
            decode_image(data, max_pixels=max_pixels)
        answers.write(b"+")
        answers.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]))
