"""A scheme needs a row of the table and nothing else: here one whose buckets are local folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from cluster.errors import PlainError, UsageError
from cluster.storage import files, preflight, schemes, uris


class Folders:
    """An object store whose buckets are the folders of one local folder; its first operation always
    fails.
    """

    ENVIRONMENT = "FOLDERS_"

    def __init__(self, root: Path) -> None:
        self.root, self.failures = root, 0

    def file_system(self) -> pafs.FileSystem:
        return pafs.SubTreeFileSystem(str(self.root), pafs.LocalFileSystem())

    hasty_file_system = file_system

    def retry(self, operation: Callable[[], object]) -> object:
        try:
            return operation()
        except FileNotFoundError:
            raise
        except OSError:
            self.failures += 1
            return operation()

    def read_range(self, file: pa.NativeFile, start: int, count: int) -> pa.Buffer:
        file.seek(start)
        return file.read_buffer(count)

    def list_error(self, path: str) -> OSError | None:
        bucket = path.split("/")[0]
        return None if (self.root / bucket).is_dir() else OSError(f"no {bucket}")

    def cause(self, path: str, error: OSError) -> str:
        return f"folders say {error}"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folders]:
    store = Folders(tmp_path)
    (tmp_path / "bucket").mkdir()
    monkeypatch.setitem(schemes.STORES, "folders", store)
    yield store


def test_a_row_of_the_table_makes_files_and_checks_work(store: Folders, tmp_path: Path) -> None:
    assert uris.absolute("folders://bucket/a/") == "folders://bucket/a"
    assert uris.is_remote("folders://bucket/a")
    (store.root / "bucket/a").mkdir()
    files.write_bytes("folders://bucket/a/b", b"content")
    assert (store.root / "bucket/a/b").read_bytes() == b"content"
    assert files.list_files("folders://bucket") == [("folders://bucket/a/b", 7)]
    assert files.read_range("folders://bucket/a/b", 1, 3) == b"ont"
    files.download_folder("folders://bucket/a", str(tmp_path / "down"))
    assert (tmp_path / "down/b").read_bytes() == b"content"
    preflight.check_readable("folders://bucket/a/b")
    preflight.check_writable("folders://bucket/a")
    files.delete_folder("folders://bucket/a")
    assert not files.exists("folders://bucket/a")


def test_failures_are_retried_and_explained_by_the_store(store: Folders) -> None:
    # A failing disk has an errno; an error of object storage has none.
    with pytest.raises(PlainError, match=r"^folders://bucket/a: cannot be read: folders say gone"):
        with files.plain_errors("folders://bucket/a", "read"):
            raise OSError("gone")
    with pytest.raises(UsageError, match="^folders://other/a: folders say no other"):
        preflight.check_readable("folders://other/a")
    with pytest.raises(UsageError, match=r"folders://bucket/key; .* environment \(FOLDERS_"):
        uris.absolute("folders://user@bucket/a")
    with pytest.raises(PlainError, match="cannot be deleted"):
        files.delete_file("folders://bucket")
    assert store.failures == 1
