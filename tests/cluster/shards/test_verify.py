from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from cluster.errors import DataError
from cluster.shards import verify
from cluster.storage import files
from cluster.storage.uris import join
from tests.support.shard_sets import CATEGORIES, row, write_set


@pytest.mark.parametrize("where", ["local", "s3"])
def test_verify_names_every_changed_and_missing_shard(where, tmp_path, request):
    root = str(tmp_path) if where == "local" else request.getfixturevalue("bucket")
    opened = write_set(root, [[row(n, 1)] for n in range(5)])
    lines: list[str] = []
    verify.verify_shard_set(opened, say=lines.append)
    assert lines == []
    names = [shard.name for shard in opened.shards]
    files.delete_file(join(root, names[0]))
    # One bit flipped in one shard; the last byte cut off another.
    data = bytearray(files.read_bytes(join(root, names[1])))
    data[6] ^= 1
    files.write_bytes(join(root, names[1]), bytes(data))
    files.write_bytes(join(root, names[3]), files.read_bytes(join(root, names[3]))[:-1])
    message = (
        rf"3 of 5 shards differ from index.json: {names[0]}, {names[1]}, {names[3]}; run"
        r" prepare with --overwrite true"
    )
    with pytest.raises(DataError, match=message):
        verify.verify_shard_set(opened, say=lines.append)
    digest = hashlib.sha256(data).hexdigest()
    assert lines[0] == f"{names[0]} is in the index but not in the folder"
    assert (
        lines[1] == f"{names[1]} has sha256 {digest[:12]}..., the index has"
        f" {opened.shards[1].sha256[:12]}..."
    )
    assert len(lines) == 3 and lines[2].startswith(f"{names[3]} has sha256")


def test_verify_reads_in_pieces(tmp_path, monkeypatch):
    # The file is longer than one piece, and its length is no multiple of 7.
    opened = write_set(str(tmp_path), [[row(n, 1) for n in range(9)]])
    monkeypatch.setattr(verify, "_PIECE_BYTES", 7)
    verify.verify_shard_set(opened)


def test_verify_checks_the_set_digest(tmp_path):
    opened = write_set(str(tmp_path), [[row(1, 0)]])
    with pytest.raises(DataError, match="the set digest is not that of its shards"):
        verify.verify_shard_set(
            replace(opened, index=replace(opened.index, categories=CATEGORIES[:1]))
        )
