"""A zip is a read-only folder, and nothing in it is trusted."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError, UsageError
from cluster.storage import files, preflight, uris, zips
from cluster.storage.pictures import list_pictures


def packed(names: dict[str, bytes], *, comment: bytes = b"") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as target:
        for number, (name, data) in enumerate(names.items()):
            # Every second file is deflated.
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            target.writestr(zipfile.ZipInfo(name), data, method)
        target.comment = comment
    return sink.getvalue()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


CONTENT = {"a.txt": b"one", "train/1.jpg": b"two" * 999, "train/day/2.jpg": b"", "t/3.png": b"3"}


def test_a_zip_is_read_like_a_folder(root: str) -> None:
    whole = uris.join(root, "pets.ZIP")
    files.write_bytes(whole, packed(CONTENT, comment=b"made by a tool"))
    for name, data in CONTENT.items():
        assert files.read_bytes(f"{whole}/{name}") == data
        assert files.size(f"{whole}/{name}") == len(data)
        assert files.exists(f"{whole}/{name}")
    assert files.read_range(f"{whole}/train/1.jpg", 1, 3) == b"wot"
    assert files.list_files(f"{whole}/train") == [
        (f"{whole}/train/1.jpg", 2997),
        (f"{whole}/train/day/2.jpg", 0),
    ]
    assert [uri for uri, _ in files.list_files(whole, [".PNG"])] == [f"{whole}/t/3.png"]
    assert list_pictures(whole).uris == [
        f"{whole}/t/3.png",
        *dict(files.list_files(f"{whole}/train")),
    ]
    for folder in (whole, f"{whole}/train", f"{whole}/train/day"):
        assert files.exists(folder) and files.size(folder) is None
        preflight.check_readable(folder)
    assert not files.exists(f"{whole}/trai") and files.size(f"{whole}/trai") is None
    assert files.list_files(f"{whole}/trai") == []
    with pytest.raises(FileNotFoundError):
        files.read_bytes(f"{whole}/b.txt")
    with pytest.raises(UsageError, match="ZIP/valid: there is no such file or folder in the zip"):
        preflight.check_readable(f"{whole}/valid")
    # The zip itself is still a file that can be copied.
    assert files.read_bytes(whole)[:2] == b"PK"


@settings(deadline=None, max_examples=30)
@given(data=st.lists(st.binary(max_size=5000), min_size=1, max_size=20))
def test_threads_read_what_was_packed(
    data: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = tmp_path_factory.mktemp("zip") / "a.zip"
    whole.write_bytes(packed({f"{number}.bin": each for number, each in enumerate(data)}))
    with ThreadPoolExecutor(8) as pool:
        names = [f"{whole}/{number}.bin" for number in range(len(data))]
        assert list(pool.map(files.read_bytes, names)) == data


def test_a_zip_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    whole = tmp_path / "a.zip"
    for content in (b"old", b"newer"):
        whole.write_bytes(packed({"a": content}))
        assert files.read_bytes(f"{whole}/a") == content


def test_a_folder_may_be_named_like_a_zip(tmp_path: Path) -> None:
    (tmp_path / "a.zip").mkdir()
    (tmp_path / "a.zip/b").write_bytes(b"x")
    assert files.list_files(f"{tmp_path}/a.zip") == [(f"{tmp_path}/a.zip/b", 1)]
    assert files.read_bytes(f"{tmp_path}/a.zip/b") == b"x"
    preflight.check_readable(f"{tmp_path}/a.zip/b")


def test_names_without_the_mark_of_utf_8_are_utf_8(tmp_path: Path) -> None:
    data = packed({"kätzchen.jpg": b"x"})
    # Bit 11 of the flags, in the header of the file and in the table.
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.index(magic) + at
        data = data[:start] + b"\0\0" + data[start + 2 :]
    (tmp_path / "a.zip").write_bytes(data)
    assert files.read_bytes(f"{tmp_path}/a.zip/kätzchen.jpg") == b"x"


def test_extra_fields_in_front_of_a_file_are_passed_over(tmp_path: Path) -> None:
    # A field of 1000 bytes that the table does not have: longer than what is read ahead.
    data = packed({"a.txt": b"content"})
    start = data.index(b"PK\x03\x04")
    longer = data[start + 30 : start + 35] + b"\xfe\xca" + struct.pack("<H", 996) + bytes(996)
    header = data[start : start + 28] + struct.pack("<H", 1000)
    table = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    moved = data[end : end + 16] + struct.pack("<I", table + 1000) + data[end + 20 :]
    (tmp_path / "a.zip").write_bytes(
        header + longer + data[start + 35 : table] + data[table:end] + moved
    )
    assert files.read_bytes(f"{tmp_path}/a.zip/a.txt") == b"content"


def patched(data: bytes, at: int, value: bytes) -> bytes:
    """With other bytes in the entry of the first file in the table at the end."""
    start = data.index(b"PK\x01\x02") + at
    return data[:start] + value + data[start + len(value) :]


GOOD = packed({"aaaa.jpg": b"content"})
FLAGS, METHOD, PACKED, SIZE = 8, 10, 20, 24
"""Positions in an entry of the table."""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (GOOD[: len(GOOD) // 2], "is damaged or cut off"),
        (b"", "is damaged or cut off"),
        (b"<html>not found</html>" * 9, "is damaged or cut off"),
        (patched(GOOD, FLAGS, b"\x01\x00"), "is encrypted"),
        (patched(GOOD, METHOD, b"\x0e\x00"), "is packed by method 14, which is not read"),
        (patched(GOOD, SIZE, struct.pack("<I", 1 << 30)), "more than 200 times as many"),
        (GOOD.replace(b"aaaa.jpg", b"../a.jpg"), "whose name leads out of the zip: '../a.jpg'"),
        (GOOD.replace(b"aaaa.jpg", b"/aaa.jpg"), "whose name leads out of the zip: '/aaa.jpg'"),
        (GOOD.replace(b"aaaa.jpg", b"C:\\a.jpg"), "whose name leads out of the zip: 'C:/a.jpg'"),
        (GOOD.replace(b"aaaa.jpg", b"b\\..\\..\\"), "whose name leads out of the zip"),
        (GOOD.replace(b"aaaa.jpg", b"aa\xe4\xe4.jpg"), "whose name is not UTF-8"),
    ],
)
def test_a_zip_that_cannot_be_trusted_is_refused_in_one_line(
    tmp_path: Path, data: bytes, why: str
) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    for look in (files.list_files, files.size, lambda uri: files.read_bytes(f"{uri}/aaaa.jpg")):
        with pytest.raises(DataError) as refused:
            look(f"{tmp_path}/a.zip")
        assert str(refused.value).startswith(f"{tmp_path}/a.zip: ") and why in str(refused.value)
        assert "\n" not in str(refused.value) and refused.value.exit_code == 3


def flip(data: bytes) -> bytes:
    at = data.index(b"content")
    return data[:at] + b"C" + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        # The table says that the file is shorter or longer than it is.
        lambda data: patched(data, SIZE, struct.pack("<I", 3)),
        lambda data: patched(data, SIZE, struct.pack("<I", 99)),
        lambda data: patched(data, PACKED, struct.pack("<I", 1 << 31)),
        # The table names a place without a file.
        lambda data: patched(data, 42, struct.pack("<I", 9)),
        lambda data: patched(data, METHOD, b"\x08\x00"),
    ],
)
def test_a_damaged_file_costs_itself_alone(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.zip").write_bytes(damage(packed({"a": b"content", "b": b"good"})))
    with pytest.raises(zips.DamagedMember, match=r"a\.zip/a: is damaged in the zip; download it"):
        files.read_bytes(f"{tmp_path}/a.zip/a")
    assert files.read_bytes(f"{tmp_path}/a.zip/b") == b"good"


def test_a_file_that_unpacks_to_more_than_it_says_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Watched:
        def __init__(self, *arguments: int) -> None:
            self.inflate = zlib_decompressobj(*arguments)

        def decompress(self, data: bytes, most: int) -> bytes:
            found = self.inflate.decompress(data, most)
            sizes.append(len(found))
            return found

    zlib_decompressobj = zlib.decompressobj
    monkeypatch.setattr(zips.zlib, "decompressobj", Watched)
    data = packed({"small": b"", "bomb": bytes(10_000_000)})
    at = data.rindex(b"PK\x01\x02") + SIZE
    (tmp_path / "a.zip").write_bytes(data[:at] + struct.pack("<I", 1000) + data[at + 4 :])
    with pytest.raises(zips.DamagedMember):
        files.read_bytes(f"{tmp_path}/a.zip/bomb")
    assert sizes == [1001]


def test_a_file_too_large_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zips, "MAX_MEMBER", 6)
    (tmp_path / "a.zip").write_bytes(GOOD)
    with pytest.raises(DataError, match="has 7 bytes unpacked, more than the 6 that are read"):
        files.read_bytes(f"{tmp_path}/a.zip/aaaa.jpg")
