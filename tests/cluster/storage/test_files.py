from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.errors import DataError, PlainError, UsageError
from cluster.storage import files, uris
from cluster.storage.local_tree import NO_FILE, NOWHERE


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_what_is_written_is_read(root: str) -> None:
    uri = uris.join(root, "a", "b.bin")
    assert not files.exists(uri)
    files.write_bytes(uri, b"\x00one")
    files.write_bytes(uri, b"two")
    assert files.exists(uri)
    assert files.exists(uris.join(root, "a"))
    assert files.read_bytes(uri) == b"two"
    with files.open_input(uri) as file:
        file.seek(1)
        assert file.read(2) == b"wo"


def test_large_file(root: str) -> None:
    # Above 10 MiB an S3 upload goes in parts.
    data = bytes(range(256)) * (48 << 10)
    files.write_bytes(uris.join(root, "large"), data)
    assert files.read_bytes(uris.join(root, "large")) == data


def test_listing_is_recursive_sorted_and_filtered(root: str) -> None:
    for name, size in (("b.JPG", 2), ("a/c.png", 3), ("a/b/d.txt", 0)):
        files.write_bytes(uris.join(root, name), b"x" * size)
    assert files.list_files(root) == [
        (f"{root}/a/b/d.txt", 0),
        (f"{root}/a/c.png", 3),
        (f"{root}/b.JPG", 2),
    ]
    assert files.list_files(root, suffixes=(".jpg", ".png")) == [
        (f"{root}/a/c.png", 3),
        (f"{root}/b.JPG", 2),
    ]
    assert files.list_files(uris.join(root, "nothing")) == []


def test_missing_file(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        files.read_bytes(uris.join(root, "nothing"))
    files.delete_file(uris.join(root, "nothing"))


def test_json_round_trip_and_position_of_the_fault(root: str) -> None:
    uri = uris.join(root, "x.json")
    files.write_json(uri, {"name": "Zürich", "sizes": [1, 2.5]})
    assert files.read_json(uri) == {"name": "Zürich", "sizes": [1, 2.5]}
    files.write_bytes(uri, b'\xef\xbb\xbf{"bom": true}')
    assert files.read_json(uri) == {"bom": True}
    # The } stands where a value should: second line, after `_"b":_`, six characters, so column 7.
    files.write_bytes(uri, b'{"a": 1,\n "b": }')
    with pytest.raises(DataError, match=r"x\.json: not valid JSON at line 2, column 7"):
        files.read_json(uri)
    files.write_bytes(uri, b'{"a": "\xff"}')
    with pytest.raises(DataError, match="byte 7 is not UTF-8"):
        files.read_json(uri)


def test_a_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "file")
    files.write_bytes(uri, b"old")

    def no_space(*_: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(PlainError, match="cannot be written .*No space left"):
        files.write_bytes(uri, b"new")
    assert files.read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_folders_go_up_and_down(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("index.json", "z.bin", "sub/a.bin"):
        files.write_bytes(str(source / name), name.encode())
    files.upload_folder(str(source), uris.join(root, "up"), last="index.json")
    files.download_folder(uris.join(root, "up"), str(tmp_path / "down"))
    names = [
        os.path.relpath(uri, tmp_path / "down")
        for uri, _ in files.list_files(str(tmp_path / "down"))
    ]
    assert names == ["index.json", "sub/a.bin", "z.bin"]
    assert (tmp_path / "down/sub/a.bin").read_bytes() == b"sub/a.bin"
    with pytest.raises(UsageError, match="no such folder or it is empty"):
        files.download_folder(uris.join(root, "other"), str(tmp_path / "down"))


def test_the_completing_file_goes_up_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "index.json", "z"):
        (tmp_path / name).write_bytes(b"")
    order: list[str] = []
    monkeypatch.setattr(files, "write_bytes", lambda uri, data: order.append(uri))
    files.upload_folder(str(tmp_path), "/target", last="index.json")
    assert sorted(order[:2]) == ["/target/a", "/target/z"]
    assert order[2:] == ["/target/index.json"]


def test_delete_folder_takes_that_folder_alone(root: str) -> None:
    for name in ("gone/a", "gone/b/c", "gone-not/a"):
        files.write_bytes(uris.join(root, name), b"x")
    files.delete_folder(uris.join(root, "gone"))
    files.delete_folder(uris.join(root, "gone"))
    assert files.list_files(root) == [(f"{root}/gone-not/a", 1)]
    with pytest.raises(UsageError, match="cannot be deleted"):
        files.delete_folder("s3://whole-bucket")
    with pytest.raises(UsageError, match="cannot be deleted"):
        files.delete_folder("/tmp")


def test_one_client_per_environment(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = files.resolve("s3://one/key")
    assert files.resolve("s3://two/key")[0] is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert files.resolve("s3://one/key")[0] is not first


def test_a_bucket_that_is_not_there_is_no_surprise_later(s3: str) -> None:
    with pytest.raises(PlainError, match="s3://never-made/key: cannot be written"):
        files.write_bytes("s3://never-made/key", b"x")


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data/a.jpg").write_bytes(b"1")
    (tmp_path / "elsewhere/b.jpg").write_bytes(b"22")
    (tmp_path / "data/inner/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to(".")
    (tmp_path / "data/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data")
    (tmp_path / "data/link.jpg").symlink_to("a.jpg")
    (tmp_path / "data/nowhere.jpg").symlink_to("gone")
    root = str(tmp_path / "data")
    assert files.list_files(root) == [
        (f"{root}/a.jpg", 1),
        (f"{root}/link.jpg", 1),
        (f"{root}/other/b.jpg", 2),
    ]
    # The folder that is listed may itself be a link.
    assert files.list_files(f"{root}/other") == [
        (f"{root}/other/b.jpg", 2),
        (f"{root}/other/back/a.jpg", 1),
        (f"{root}/other/back/link.jpg", 1),
    ]


def test_a_listing_ends_however_many_links_lead_into_a_folder(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / f"few/{name}").mkdir(parents=True)
        (tmp_path / f"few/{name}/images").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(b"1")
    assert len(files.list_files(str(tmp_path / "few"))) == 3
    # From each of 10 folders to all others: 10! ways from one to the next.
    for name in "abcdefghij":
        (tmp_path / f"many/{name}").mkdir(parents=True)
        for other in "abcdefghij":
            (tmp_path / f"many/{name}/{other}").symlink_to(tmp_path / "many" / other)
    with pytest.raises(DataError, match=r"more than 16 links lead into this folder; remove"):
        files.list_files(str(tmp_path / "many"))


def test_what_is_no_file_is_listed_with_the_reason_and_never_opened(tmp_path: Path) -> None:
    """To open a pipe would wait for somebody who writes into it."""
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "nowhere.jpg").symlink_to("gone")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "through.jpg").symlink_to("a.jpg/b.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert {Path(entry.uri).name: entry.fault for entry in files.list_entries(str(tmp_path))} == {
        "a.jpg": "",
        "nowhere.jpg": NOWHERE,
        "pipe.jpg": NO_FILE,
        "round.jpg": NOWHERE,
        "through.jpg": NOWHERE,
    }
    assert files.list_files(str(tmp_path)) == [(f"{tmp_path}/a.jpg", 1)]
    for name in ("nowhere.jpg", "round.jpg", "through.jpg"):
        with pytest.raises(FileNotFoundError, match=NOWHERE):
            files.read_bytes(f"{tmp_path}/{name}")
    with pytest.raises(DataError, match=rf"pipe.jpg: is {NO_FILE}; put a file in its place"):
        files.read_bytes(f"{tmp_path}/pipe.jpg")
