"""One image of a list: read and decoded, or a fault of this image. A fault of the storage is no
fault of an image and is raised.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cluster.errors import DataError, PlainError
from cluster.storage import files, parquet_pictures
from detector.image import MAX_BYTES, ImageError, Jpeg, TooManyPixels, open_image

ROWS = 32
"""Pictures of a Parquet file that are in memory together."""
Reason = Literal[
    "missing",
    "empty",
    "not_an_image",
    "undecodable",
    "too_many_pixels",
    "too_large",
    "kills_its_decoder",
]
REMEDIES: dict[str, str] = {
    "missing": "Restore the files, or take them out of the list.",
    "empty": "The files were never written to their end: copy them again.",
    "not_an_image": "Take the files out of the folder or the list.",
    "undecodable": "The files are truncated or damaged: copy them again from their source.",
    "too_many_pixels": "Raise --max_pixels, if the workers have the memory, or cut the pictures.",
    "too_large": "Save the pictures in a smaller format, or cut them.",
    "kills_its_decoder": "Look at the files with care, and save them again or leave them out.",
}
"""What to do, by `Reason`."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_IMAGE = ("it is ", "it cannot be decoded: cannot identify")
"""How `ImageError`s begin of files that are something else."""


@dataclass(frozen=True)
class Fault:
    """Why there are no detections of an image."""

    reason: Reason
    sentence: str


def grouped(uris: Iterable[str]) -> Iterator[list[tuple[int, str]]]:
    """(position, URI) in order, in groups that are read together: a file alone, up to `ROWS`
    pictures inside one Parquet file, which cannot be read without what precedes them.
    """
    group: list[tuple[int, str]] = []
    of: str | None = None
    for number, uri in enumerate(uris):
        inside = parquet_pictures.split(uri)
        file = None if inside is None else inside[0]
        if group and (file is None or file != of or len(group) >= ROWS):
            yield group
            group = []
        group.append((number, uri))
        of = file
    if group:
        yield group


def read_images(uris: Sequence[str]) -> list[bytes | Fault]:
    """The encoded images of a group. `PlainError` where the storage does not answer or denies
    access, after the retries of `files`.
    """
    if parquet_pictures.split(uris[0]) is None:
        return [_read(uri) for uri in uris]
    try:
        found = parquet_pictures.read_pictures(uris)
    except Exception as error:
        return [_fault_of_reading(error, uri) for uri in uris]
    return [
        Fault("missing", f"cannot be read: {uri}: there is no picture in this row")
        if (data := found[uri]) is None
        else _checked(data)
        for uri in uris
    ]


def _read(uri: str) -> bytes | Fault:
    try:
        with files.open_input(uri) as file:
            if (size := file.size()) > MAX_BYTES:
                return Fault(
                    "too_large", f"the file has {size >> 20} MiB, {MAX_BYTES >> 20} are allowed"
                )
            return _checked(file.read_buffer().to_pybytes())
    except Exception as error:
        return _fault_of_reading(error, uri)


def _checked(data: bytes) -> bytes | Fault:
    return data if data else Fault("empty", "the file is empty")


def _fault_of_reading(error: Exception, uri: str) -> Fault:
    """The fault of an image that cannot be read. Raises a `PlainError` where it is not that of the
    image.
    """
    # Of a Parquet file that is gone `open_parquet` says more.
    if isinstance(error, DataError) and isinstance(error.__context__, FileNotFoundError):
        return Fault("missing", f"cannot be read: {error}")
    if isinstance(error, FileNotFoundError) or (
        isinstance(error, OSError) and (error.errno in _GONE or os.path.isdir(uri))
    ):
        text = files.reason(error)
        said = f"{uri}: there is no such file" if uri in text else text
        return Fault("missing", f"cannot be read: {said}")
    if isinstance(error, DataError):
        # A pipe, a damaged member of a zip, a damaged Parquet file.
        return Fault("undecodable", f"cannot be read: {error}")
    if isinstance(error, OSError):
        raise PlainError(
            f"{uri}: cannot be read ({files.reason(error)}); check the storage"
        ) from error
    raise error


def open_read(data: bytes, *, max_pixels: int) -> np.ndarray | Jpeg | Fault:
    """The image; a JPEG is decoded later, see `detector.image.open_image`."""
    try:
        return open_image(data, max_pixels=max_pixels)
    except ImageError as error:
        return fault_of(error)


def fault_of(error: ImageError) -> Fault:
    if isinstance(error, TooManyPixels):
        return Fault("too_many_pixels", str(error))
    if "the file is empty" in error.rule:
        return Fault("empty", str(error))
    reason: Reason = "not_an_image" if error.rule.startswith(_NO_IMAGE) else "undecodable"
    return Fault(reason, str(error))
