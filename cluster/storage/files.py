"""Every path and URI the project reads or writes: an absolute local path and s3://bucket/key behave
alike.

The S3 endpoint, region and credentials come from the environment (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, ...), never from a URI, so that no message and no stored file can carry a secret.

What S3 fails to do for a while is tried again (`s3.Patience`); what it refuses ends in one
`PlainError` that says why, a `UsageError` in preflights.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.errors import DataError, PlainError, UsageError
from cluster.storage import s3
from cluster.storage.uris import S3, absolute, join

TRANSFER_THREADS = 8
Result = TypeVar("Result")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of `uri` (one per process and environment) and the path inside it."""
    uri = absolute(uri)
    if not uri.startswith(S3):
        return pafs.LocalFileSystem(), uri
    return s3.client(s3.PATIENT), uri[len(S3) :]


def patiently(uri: str, verb: str, operation: Callable[[], Result]) -> Result:
    """What `operation` gives, tried again where S3 may recover. Errors: see `plain_errors`."""
    with plain_errors(uri, verb):
        return s3.patiently(operation)


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    filesystem, path = resolve(uri)
    return patiently(
        uri, "looked up", lambda: filesystem.get_file_info(path).type != pafs.FileType.NotFound
    )


def size(uri: str) -> int | None:
    """Bytes of a file; None for a folder and where nothing is there."""
    filesystem, path = resolve(uri)
    return patiently(uri, "looked up", lambda: filesystem.get_file_info(path).size)


def open_input(uri: str) -> pa.NativeFile:
    """A seekable file to read from. `FileNotFoundError` when it is not there; from S3 `PlainError`,
    now or when it is read, when storage fails.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return filesystem.open_input_file(path)
    file = patiently(uri, "read", lambda: filesystem.open_input_file(path))
    return fetched_file(
        file.size(),
        lambda start, count: patiently(uri, "read", lambda: s3.read_range(file, start, count)),
    )


def fetched_file(size: int, fetch: Callable[[int, int], pa.Buffer]) -> pa.NativeFile:
    """A seekable file of `size` bytes, of which `fetch(start, count)` gives every byte asked for or
    raises.
    """
    return pa.PythonFile(s3.FetchedFile(size, fetch), mode="r")


def read_bytes(uri: str) -> bytes:
    """The whole file. `FileNotFoundError` when it is not there; from S3 `PlainError` when storage
    fails, from elsewhere other `OSError`s.
    """
    with open_input(uri) as file:
        return file.read_buffer().to_pybytes()


def read_range(uri: str, start: int, count: int) -> bytes:
    """`count` bytes from byte `start` on, fewer where the file ends before. Errors: see
    `read_bytes`.
    """
    with open_input(uri) as file:
        return file.read_at(count, start)


def read_json(uri: str) -> Any:
    """`FileNotFoundError` when it is not there, `DataError` with line and column when it is not
    JSON.
    """
    return parse_json(read_bytes(uri), uri)


def parse_json(data: bytes, uri: str) -> Any:
    """The content of the JSON file whose bytes are `data`; `uri` is for the `DataError` that names
    line and column.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{uri}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg};"
            " write or download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{uri}: not valid JSON: byte {error.start} is not UTF-8; write or download it again"
        ) from error


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Publish a whole file at once: readers see the old content or the new, never a part of it."""
    filesystem, path = resolve(uri)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    patiently(
        uri,
        "written",
        lambda: replace_file(path, data) if local else s3.put(filesystem, path, data),
    )


def replace_file(path: str, data: bytes | pa.Buffer) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes files private; these are meant to be read by whoever may read the folder.
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
    """(uri, bytes) of every file below the folder, sorted; empty when there is no folder.
    `suffixes` (".jpg", ...) ignore case.

    `DataError` where a name is not UTF-8.
    """
    return [(name, size) for name, size, _ in list_changes(uri, suffixes)]


def list_changes(uri: str, suffixes: Iterable[str] | None = None) -> list[tuple[str, int, int]]:
    """As `list_files`, with the time of each file's last change: ns since 1970, on S3 whole
    seconds.
    """
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    entries = patiently(uri, "listed", lambda: filesystem.get_file_info(selector))
    wanted = tuple(suffix.lower() for suffix in suffixes) if suffixes is not None else None
    scheme = S3 if uri.startswith(S3) else ""
    try:
        return sorted(
            (scheme + entry.path, entry.size, entry.mtime_ns or 0)
            for entry in entries
            if entry.type == pafs.FileType.File
            and not entry.base_name.startswith(".partial-")
            and (wanted is None or entry.path.lower().endswith(wanted))
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{uri}: holds a file whose name is not UTF-8: {error.object!r}; rename or remove it"
        ) from error


def upload_folder(local: str, uri: str, *, last: str | None = None) -> None:
    """Copy the files of a local folder to `uri`, the one named `last` (relative to the folder)
    after all others: it says "complete".
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
    """Copy every file below `uri` into the local folder. `UsageError` when there is none."""
    uri = absolute(uri)
    files = list_files(uri)
    if not files:
        raise UsageError(f"{uri}: there is no such folder or it is empty; check the path")
    with ThreadPoolExecutor(TRANSFER_THREADS) as pool:
        list(
            pool.map(
                lambda file: write_bytes(join(local, file[0][len(uri) + 1 :]), read_bytes(file[0])),
                files,
            )
        )


def delete_file(uri: str) -> None:
    """Nothing happens when it is not there."""
    filesystem, path = resolve(uri)
    with suppress(FileNotFoundError):
        patiently(uri, "deleted", lambda: filesystem.delete_file(path))


def delete_folder(uri: str) -> None:
    """The folder and everything in it. Nothing happens when it is not there; a whole bucket and /
    are refused.
    """
    filesystem, path = resolve(uri)
    if "/" not in path.strip("/"):
        raise UsageError(
            f"{uri}: a whole bucket or top-level folder is not deleted; name a folder inside it"
        )
    with suppress(FileNotFoundError):
        patiently(uri, "deleted", lambda: filesystem.delete_dir(path))


def reason(error: Exception) -> str:
    """The first line of a storage error, short enough for one plain sentence. pyarrow's messages
    name bucket, key and status, never a secret.
    """
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


@contextmanager
def plain_errors(uri: str, verb: str) -> Iterator[None]:
    """A failing storage becomes one plain line (exit code 1); a missing file stays a
    `FileNotFoundError`, which callers decide about.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        # pyarrow's S3 errors have no number; one that has comes from this machine's disk.
        if uri.startswith(S3) and error.errno is None:
            why = s3.cause(absolute(uri)[len(S3) :], error)
            raise PlainError(
                f"{uri}: cannot be {verb}: {why}; then run the command again"
            ) from error
        raise PlainError(
            f"{uri}: cannot be {verb} ({reason(error)}); check the storage and run the command"
            " again"
        ) from error


@contextmanager
def content_errors(uri: str, remedy: str) -> Iterator[None]:
    """For a file that belongs to a set: `DataError` with the remedy when it is missing or damaged,
    `PlainError` when the storage fails.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{uri}: is not in the folder of its set; {remedy}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        # What pyarrow says of the content has no number, a disk's fault has one. S3's are a
        # `PlainError` already.
        if getattr(error, "errno", None) is not None:
            raise PlainError(
                f"{uri}: cannot be read ({reason(error)}); check the storage and run the command"
                " again"
            ) from error
        raise DataError(f"{uri}: is damaged ({reason(error)}); {remedy}") from error
