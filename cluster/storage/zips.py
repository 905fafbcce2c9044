"""A zip as a read-only folder: `pets.zip/train/1.jpg` names a file in it, on a local disk as in
object storage. `files` looks into zips; nobody else needs to know of them.

Its files are read in place, each with one read of the zip, and never unpacked to a disk. So there
is nothing to clean up, `--check` writes nothing, a name cannot lead out, and workers on other nodes
read a zip in S3 like any other object. It costs little: 2,000 JPEGs of 94 kB took 1.8 s of CPU time
from the zip and 0.4 s as files; unpacking them first takes 1.8 s of it.

Of a zip only the table at its end stays in memory: 32 MB for 120,000 files.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa

from cluster.errors import DataError

MAX_MEMBER = 1 << 30
"""Bytes of a file in a zip; it is in memory as a whole. The largest annotation file that we know,
LVIS, has 1.0 GB; train2017 of COCO has 0.5 GB.
"""
MAX_RATIO, RATIO_FROM = 200, 64 << 20
"""A file of more than 64 MiB that was packed 200 times smaller is made to fill memories: JSON with
blanks is packed up to 30 times smaller, pictures hardly at all.
"""
_LOCAL_HEADER = 30
_SLACK = 128
"""The extra fields in front of a file are some bytes longer than those in the table at the end."""
_ENCRYPTED, _UTF8 = 0x1, 0x800
_AGAIN = "download it again, or unpack it and give the folder"


class DamagedMember(DataError):
    """One file in a zip that cannot be unpacked; the others may well be."""


class _Member(NamedTuple):
    header: int
    """Position in the zip, bytes."""
    before: int
    """Bytes from there to the content, as the table tells."""
    packed: int
    size: int
    crc: int
    deflated: bool


def split(uri: str) -> tuple[str, str] | None:
    """(a/b.zip, c/d.jpg) of a/b.zip/c/d.jpg, and (a/b.zip, "") of the zip itself; None where no
    part of `uri` ends like the name of a zip.
    """
    found = re.match(r"(.+?\.zip)(?:/(.*))?$", uri, re.IGNORECASE | re.DOTALL)
    return None if found is None else (found[1], found[2] or "")


class Archive:
    """The files of one zip. Threads may share it: every read opens the zip for itself."""

    def __init__(self, uri: str, open_zip: Callable[[], pa.NativeFile], changed: int):
        """`changed` is the time of the zip's last change, ns. `DataError` where it is damaged,
        encrypted, or holds what no data set holds.
        """
        self.uri, self.open_zip, self.changed = uri, open_zip, changed
        self.members: dict[str, _Member] = {}
        try:
            with open_zip() as file, zipfile.ZipFile(file) as listing:
                entries = [entry for entry in listing.infolist() if not entry.is_dir()]
        except (zipfile.BadZipFile, EOFError, struct.error, UnicodeDecodeError, ValueError) as why:
            raise DataError(f"{uri}: is damaged or cut off ({why}); {_AGAIN}") from why
        except NotImplementedError as why:
            raise DataError(f"{uri}: is of a kind that is not read ({why}); {_AGAIN}") from why
        for entry in entries:
            # Of two files of one name the later one counts, as when they are unpacked.
            self.members[_name(entry, uri)] = _checked(entry, uri)
        self.folders = {
            name[: mark.start()] for name in self.members for mark in re.finditer("/", name)
        }

    def size(self, name: str) -> int | None:
        """Bytes of a file, unpacked; None for a folder and where nothing is."""
        return self.members[name].size if name in self.members else None

    def exists(self, name: str) -> bool:
        return not name or name in self.members or name in self.folders

    def below(self, folder: str) -> Iterator[tuple[str, int, int]]:
        """URI, bytes and time of the last change of every file below the folder."""
        start = f"{folder}/" if folder else ""
        for name, member in self.members.items():
            if name.startswith(start):
                yield f"{self.uri}/{name}", member.size, self.changed

    def names(self, folder: str) -> list[str]:
        """The files and folders right in a folder, sorted."""
        start = f"{folder}/" if folder else ""
        inside = (name[len(start) :] for name in self.members if name.startswith(start))
        return sorted({name.split("/")[0] for name in inside})

    def read(self, name: str) -> bytes:
        """The content of a file. `FileNotFoundError` where it is not there, `DamagedMember` where
        it cannot be unpacked.
        """
        if name not in self.members:
            raise FileNotFoundError(f"{self.uri}/{name}: there is no such file in the zip")
        member = self.members[name]
        if member.size > MAX_MEMBER:
            raise DataError(
                f"{self.uri}/{name}: has {member.size} bytes unpacked, more than the"
                f" {MAX_MEMBER} that are read from a zip; unpack the zip and give the folder"
            )
        data = _unpack(self._packed(member), member)
        if data is None or len(data) != member.size or zlib.crc32(data) != member.crc:
            raise DamagedMember(f"{self.uri}/{name}: is damaged in the zip; {_AGAIN}")
        return data

    def _packed(self, member: _Member) -> bytes:
        with self.open_zip() as file:
            end = file.size()
            count = min(member.before + _SLACK + member.packed, end - member.header)
            data = file.read_at(max(count, 0), member.header)
            if len(data) < _LOCAL_HEADER or data[:4] != b"PK\x03\x04":
                return b""
            start = _LOCAL_HEADER + sum(struct.unpack("<HH", data[26:30]))
            if start + member.packed > len(data):
                count = min(member.packed, end - member.header - start)
                return file.read_at(max(count, 0), member.header + start)
            return data[start : start + member.packed]


def _unpack(packed: bytes, member: _Member) -> bytes | None:
    """The content; None where the packed bytes mean nothing. What is longer than the table says is
    cut off after one byte, so that it fills no memory.
    """
    if not member.deflated:
        return packed
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.size + 1)
    except zlib.error:
        return None


def _name(entry: zipfile.ZipInfo, uri: str) -> str:
    """The name as UTF-8. Many tools write that without saying so."""
    name = entry.filename
    if not entry.flag_bits & _UTF8:
        raw = name.encode("cp437")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise DataError(
                f"{uri}: contains a file whose name is not UTF-8: {raw!r}; rename the file and"
                " pack the zip again"
            ) from None
    # Old packers of Windows write its separator.
    name = name.replace("\\", "/").removeprefix("./")
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise DataError(
            f"{uri}: contains a file whose name leads out of the zip: {name!r}; if you trust it,"
            " unpack it and give the folder"
        )
    return name


def _checked(entry: zipfile.ZipInfo, uri: str) -> _Member:
    if entry.flag_bits & _ENCRYPTED:
        raise DataError(
            f"{uri}: is encrypted ({entry.filename!r} needs a password); unpack it and give the"
            " folder"
        )
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{uri}: {entry.filename!r} is packed by method {entry.compress_type}, which is not"
            f" read (0, store, and 8, deflate, are); unpack it and give the folder"
        )
    if entry.file_size > RATIO_FROM and entry.file_size > MAX_RATIO * entry.compress_size:
        raise DataError(
            f"{uri}: {entry.filename!r} has {entry.compress_size} bytes and would have"
            f" {entry.file_size} unpacked, more than {MAX_RATIO} times as many; no data set has"
            " such a file"
        )
    return _Member(
        header=entry.header_offset,
        before=_LOCAL_HEADER + len(entry.filename.encode("utf-8", "replace")) + len(entry.extra),
        packed=entry.compress_size,
        size=entry.file_size,
        crc=entry.CRC,
        deflated=entry.compress_type == zipfile.ZIP_DEFLATED,
    )
