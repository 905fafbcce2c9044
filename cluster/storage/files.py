"""Read, write and list files: an absolute local path and scheme://bucket/key behave alike. A zip
can be read like a folder (see `zips`).

The endpoint, region and credentials of object storage come from the environment (AWS_ENDPOINT_URL,
AWS_REGION, AWS_ACCESS_KEY_ID, ...), never from a URI, so no message and no stored file can contain
a secret.

Temporary failures of object storage are retried (`s3.Patience`). Other failures end in one
`PlainError` with the reason; the preflight checks raise `UsageError`.
"""

from __future__ import annotations

import json
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.errors import DataError, PlainError, UsageError
from cluster.storage import schemes, zips
from cluster.storage.fetched_file import open_fetched
from cluster.storage.local_tree import NO_FILE, NOWHERE, Entry, fault_of, walk
from cluster.storage.uris import absolute, is_plain, is_remote, join, relative_to
from detector import json_text

TRANSFER_THREADS = 8
MAX_JSON = 512 << 20
"""Bytes of a JSON file that is read at once, which may need ten times as many. The index of 10
million images has 30 MB; larger files are read by `formats.json_stream`.
"""
PARTIAL = ".partial-"
"""Prefix of a local file that is not complete yet; listings leave it out."""
_ZIP_LOCK = Lock()
"""Threads that need the same zip wait for the first of them, which reads its table."""
Result = TypeVar("Result")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of `uri` (one per process and environment) and the path inside it."""
    # A name from a listing is what it is, also with a blank at its end.
    if os.path.isabs(uri):
        uri = os.path.normpath(uri)
    elif not (is_remote(uri) and is_plain(uri)):
        uri = absolute(uri)
    store = schemes.store_of(uri)
    return (
        pafs.LocalFileSystem() if store is None else store.file_system(),
        schemes.split(uri)[1],
    )


def _attempt(uri: str, verb: str, operation: Callable[[], Result]) -> Result:
    """The result of `operation`, with retries in object storage. Errors: see `plain_errors`."""
    store = schemes.store_of(uri)
    with plain_errors(uri, verb):
        return operation() if store is None else store.retry(operation)


def _in_zip(uri: str) -> tuple[zips.Archive, str] | None:
    """The zip that `uri` leads into, or is, and the name of the file or folder in it ("" for the
    zip itself). None where it leads into none, and where a folder is named like a zip.
    """
    parts = zips.split(uri)
    if parts is None:
        return None
    (file_system, path), name = resolve(parts[0]), parts[1]
    found = _attempt(uri, "looked up", lambda: file_system.get_file_info(path))
    if found.type != pafs.FileType.File:
        return None
    with _ZIP_LOCK:
        return _open_zip(absolute(parts[0]), found.size, found.mtime_ns or 0), name


@lru_cache(maxsize=4)
def _open_zip(uri: str, size: int, changed: int) -> zips.Archive:
    """`size` is part of the key alone: a zip that was replaced is another one."""
    return zips.Archive(uri, lambda: _open_plain(uri), changed)


def exists(uri: str) -> bool:
    """Whether a file or a folder exists."""
    if (inside := _in_zip(uri)) is not None:
        return inside[0].exists(inside[1])
    file_system, path = resolve(uri)
    return _attempt(
        uri, "looked up", lambda: file_system.get_file_info(path).type != pafs.FileType.NotFound
    )


def size(uri: str) -> int | None:
    """Bytes of a file; None for a folder, such as a zip, and where nothing exists."""
    if (inside := _in_zip(uri)) is not None:
        return inside[0].size(inside[1])
    file_system, path = resolve(uri)
    return _attempt(uri, "looked up", lambda: file_system.get_file_info(path).size)


def last_change(uri: str) -> int:
    """ns since 1970; 0 where it is not known or nothing exists."""
    file_system, path = resolve(uri)
    return _attempt(uri, "looked up", lambda: file_system.get_file_info(path).mtime_ns or 0)


def open_input(uri: str) -> pa.NativeFile:
    """A seekable file for reading. `FileNotFoundError` where it does not exist. A failing object
    store raises `PlainError`, here or at a later read; a local disk other `OSError`s; `DataError`
    for a pipe, which is never opened. For a file in
    a zip see `zips.Archive.read`.
    """
    if (inside := _in_zip(uri)) is not None and inside[1]:
        return pa.BufferReader(inside[0].read(inside[1]))
    return _open_plain(uri)


def _open_plain(uri: str) -> pa.NativeFile:
    """`open_input` of a file that is in no zip."""
    file_system, path = resolve(uri)
    store = schemes.store_of(uri)
    if store is None:
        # To open a pipe waits for somebody who writes into it.
        if (fault := fault_of(path)) == NO_FILE:
            raise DataError(f"{uri}: is {NO_FILE}; put a file in its place")
        if fault:
            raise FileNotFoundError(NOWHERE)
        return file_system.open_input_file(path)
    file = _attempt(uri, "read", lambda: file_system.open_input_file(path))

    def fetch(start: int, count: int) -> pa.Buffer:
        return _attempt(uri, "read", lambda: store.read_range(file, start, count))

    return open_fetched(file.size(), fetch)


def read_bytes(uri: str) -> bytes:
    """The whole file. Errors: see `open_input`."""
    with open_input(uri) as file:
        return file.read_buffer().to_pybytes()


def read_range(uri: str, start: int, count: int) -> bytes:
    """`count` bytes from byte `start` on, fewer where the file ends before. Errors: see
    `open_input`.
    """
    with open_input(uri) as file:
        return file.read_at(count, start)


def read_json(uri: str) -> Any:
    """The content of a JSON file of at most `MAX_JSON` bytes. `DataError` with line and column
    where it is not JSON; other errors: see `open_input`. `record_files` checks what it holds.
    """
    with open_input(uri) as file:
        if (size := file.size()) > MAX_JSON:
            raise DataError(
                f"{uri}: has {size >> 20} MiB, {MAX_JSON >> 20} are read at once; check the file"
            )
        return parse_json(file.read_buffer().to_pybytes(), uri)


def parse_json(data: bytes, uri: str) -> Any:
    """The content of the JSON file whose bytes are `data`. The `DataError` names `uri`, line and
    column, or the limit of `json_text` that it breaks.
    """
    try:
        return json_text.parse(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{uri}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg};"
            " write or download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{uri}: not valid JSON: byte {error.start} is not UTF-8; write or download it again"
        ) from error
    except ValueError as error:
        raise DataError(f"{uri}: not usable JSON: {error}; write or download it again") from error


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Publish a whole file at once: readers see the old content or the new, never a part of it."""
    file_system, path = resolve(uri)
    local = isinstance(file_system, pafs.LocalFileSystem)
    _attempt(
        uri,
        "written",
        lambda: _replace_file(path, data) if local else _put(file_system, path, data),
    )


def _put(file_system: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    # An object becomes visible when its upload is complete, not before.
    with file_system.open_output_stream(path) as stream:
        stream.write(data)


def _replace_file(path: str, data: bytes | pa.Buffer) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes private files; whoever may read the folder should be able to read these.
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@lru_cache(maxsize=1)
def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_json(uri: str, content: Any) -> None:
    write_bytes(
        uri, (json.dumps(content, indent=1, ensure_ascii=False, sort_keys=False) + "\n").encode()
    )


def list_files(uri: str, suffixes: Iterable[str] | None = None) -> list[tuple[str, int]]:
    """(uri, bytes) of every file below the folder, sorted; empty where there is no folder.
    `suffixes` (".jpg", ...) select files and ignore case.

    `DataError` where a name is not UTF-8.
    """
    wanted = tuple(suffix.lower() for suffix in suffixes) if suffixes is not None else None
    return [
        (entry.uri, entry.size)
        for entry in list_entries(uri)
        if not entry.fault and (wanted is None or entry.uri.lower().endswith(wanted))
    ]


def list_entries(uri: str) -> list[Entry]:
    """As `list_files`, with the time of each file's last change (whole seconds in object storage),
    and with what is no file that can be read, such as a link that leads nowhere.
    """
    uri = absolute(uri)
    store = schemes.store_of(uri)
    if (inside := _in_zip(uri)) is not None:
        entries = [Entry(*one) for one in inside[0].below(inside[1])]
    else:
        entries = _attempt(uri, "listed", lambda: list(walk(uri) if store is None else _keys(uri)))
    return sorted(
        entry for entry in entries if not posixpath.basename(entry.uri).startswith(PARTIAL)
    )


def iterate_entries(uri: str) -> Iterator[Entry]:
    """As `list_entries`, one after another: a listing of any length needs little memory."""
    uri = absolute(uri)
    store = schemes.store_of(uri)
    if (inside := _in_zip(uri)) is not None or store is None:
        entries = (
            walk(uri)
            if inside is None
            else iter(sorted(Entry(*one) for one in inside[0].below(inside[1])))
        )
    else:
        scheme, path = schemes.split(uri)
        entries = (
            Entry(f"{scheme}://{key.path}", key.size, key.changed) for key in store.keys(path)
        )
    with plain_errors(uri, "listed"):
        for entry in entries:
            if not posixpath.basename(entry.uri).startswith(PARTIAL):
                yield entry


def list_names(uri: str) -> list[str]:
    """The names of the files and folders right in a folder; empty where there is none."""
    if (inside := _in_zip(uri)) is not None:
        return inside[0].names(inside[1])
    file_system, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True)
    entries = _attempt(uri, "listed", lambda: file_system.get_file_info(selector))
    return sorted(entry.base_name for entry in entries)


def _keys(uri: str) -> Iterator[Entry]:
    file_system, path = resolve(uri)
    scheme, _ = schemes.split(uri)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    for entry in file_system.get_file_info(selector):
        if entry.type == pafs.FileType.File:
            yield Entry(f"{scheme}://{entry.path}", entry.size, entry.mtime_ns or 0)


def upload_folder(local: str, uri: str, *, last: str | None = None) -> None:
    """Copy the files of a local folder to `uri`, the one named `last` (relative to the folder)
    after all others: its presence says that the copy is complete.
    """
    names = [os.path.relpath(path, local).replace(os.sep, "/") for path, _ in list_files(local)]

    def copy(name: str) -> None:
        with open(os.path.join(local, name), "rb") as file:
            write_bytes(join(uri, name), file.read())

    with ThreadPoolExecutor(TRANSFER_THREADS) as pool:
        list(pool.map(copy, [name for name in names if name != last]))
    if last in names:
        copy(last)


def download_folder(uri: str, local: str) -> None:
    """Copy every file below `uri` into the local folder. `UsageError` where there is none."""
    uri = absolute(uri)
    sources = [source for source, _ in list_files(uri)]
    if not sources:
        raise UsageError(f"{uri}: there is no such folder or it is empty; check the path")

    def copy(source: str) -> None:
        write_bytes(join(local, relative_to(source, uri)), read_bytes(source))

    with ThreadPoolExecutor(TRANSFER_THREADS) as pool:
        list(pool.map(copy, sources))


def delete_file(uri: str) -> None:
    """Delete the file; no error where it does not exist."""
    file_system, path = resolve(uri)
    with suppress(FileNotFoundError):
        _attempt(uri, "deleted", lambda: file_system.delete_file(path))


def delete_folder(uri: str) -> None:
    """Delete the folder and everything in it; no error where it does not exist. `UsageError` for a
    whole bucket or a top-level folder.
    """
    file_system, path = resolve(uri)
    if "/" not in path.strip("/"):
        raise UsageError(
            f"{uri}: a whole bucket or top-level folder cannot be deleted; name a folder inside it"
        )
    with suppress(FileNotFoundError):
        _attempt(uri, "deleted", lambda: file_system.delete_dir(path))


def reason(error: Exception) -> str:
    """The first line of a storage error, short enough for one plain sentence. pyarrow's messages
    name bucket, key and status, never a secret.
    """
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


@contextmanager
def plain_errors(uri: str, verb: str) -> Iterator[None]:
    """A storage failure becomes one plain line (exit code 1); a missing file stays a
    `FileNotFoundError`, which the caller handles.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        store = schemes.store_of(uri)
        # pyarrow's errors of object storage have no errno; an error with one comes from this
        # machine's disk.
        if store is not None and error.errno is None:
            why = store.cause(schemes.split(uri)[1], error)
            raise PlainError(
                f"{uri}: cannot be {verb}: {why}; then run the command again"
            ) from error
        raise PlainError(
            f"{uri}: cannot be {verb} ({reason(error)}); check the storage and run the command"
            " again"
        ) from error


@contextmanager
def content_errors(uri: str, remedy: str) -> Iterator[None]:
    """For a file of a shard set: `DataError` with the remedy where it is missing or damaged,
    `PlainError` where the storage fails.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{uri}: is not in the folder of its set; {remedy}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        # pyarrow's errors about the content have no errno, those of a disk have one. Errors of
        # object storage are `PlainError`s already.
        if getattr(error, "errno", None) is not None:
            raise PlainError(
                f"{uri}: cannot be read ({reason(error)}); check the storage and run the command"
                " again"
            ) from error
        raise DataError(f"{uri}: is damaged ({reason(error)}); {remedy}") from error
