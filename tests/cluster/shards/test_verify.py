from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from cluster.errors import DataError
from cluster.shards import consistency, verify
from cluster.shards.index import Counts, ShardSet
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
    monkeypatch.setattr(consistency, "_PIECE_BYTES", 7)
    verify.verify_shard_set(opened)


def test_verify_checks_the_set_digest(tmp_path):
    opened = write_set(str(tmp_path), [[row(1, 0)]])
    with pytest.raises(DataError, match="the set digest is not that of its shards"):
        verify.verify_shard_set(
            replace(opened, index=replace(opened.index, categories=CATEGORIES[:1]))
        )


def changed(opened: ShardSet, **values: object) -> ShardSet:
    """The set with another first shard in its index."""
    shards = (opened.shards[0]._replace(**values), *opened.shards[1:])
    return replace(opened, index=replace(opened.index, shards=shards))


def test_verify_vouches_for_no_index_that_it_has_not_compared(tmp_path):
    opened = write_set(str(tmp_path), [[row(n, 1) for n in range(5)], [row(5, 1)]])
    groups = opened.shards[0].row_groups
    first = groups[0]
    for values, why in [
        ({"name": "../other/shard-00000-of-00002.parquet"}, "is no name of a shard"),
        ({"name": "shard-00001-of-00002.parquet"}, "is out of order, or of another set"),
        ({"name": "shard-00002-of-00002.parquet"}, "is out of order, or of another set"),
        ({"name": "shard-00000-of-00009.parquet"}, "is out of order, or of another set"),
        ({"rows": 10**12}, "it has 1000000000000 rows, its row groups 5"),
        ({"row_groups": ()}, "a row group without rows"),
        ({"row_groups": (first._replace(start=-8), *groups[1:])}, "do not follow each other"),
        ({"row_groups": (first._replace(bytes=-8), *groups[1:])}, "or without bytes"),
        ({"row_groups": (first._replace(rows=0), *groups[1:])}, "without rows"),
        ({"row_groups": groups[::-1]}, "do not follow each other"),
        ({"bytes": 9}, "do not follow each other within its 9 bytes"),
        # Two rows more here, two less there: only the footer knows.
        (
            {"row_groups": (first._replace(rows=1), groups[1]._replace(rows=3), groups[2])},
            "1 of 2 shards differ",
        ),
        ({"row_groups": (first._replace(sha256="0" * 64), *groups[1:])}, "1 of 2 shards differ"),
        ({"footer_sha256": "0" * 64}, "1 of 2 shards differ"),
        ({"bytes": opened.shards[0].bytes + 1}, "1 of 2 shards differ"),
    ]:
        with pytest.raises(DataError, match=why):
            verify.verify_shard_set(changed(opened, **values))
    for index, why in [
        (replace(opened.index, counts=Counts(images=7)), "6 rows, its counts 7 images"),
        (replace(opened.index, categories=CATEGORIES[::-1]), "labels of its categories"),
    ]:
        with pytest.raises(DataError, match=why):
            verify.verify_shard_set(replace(opened, index=index))


def test_a_shard_whose_digest_fits_and_that_is_no_parquet_file_is_named(tmp_path):
    opened = write_set(str(tmp_path), [[row(1, 1)]])
    shard, content = opened.shards[0], b"PAR1" + b"x" * 40
    (tmp_path / shard.name).write_bytes(content)

    def digest(start: int, stop: int) -> str:
        return hashlib.sha256(content[start:stop]).hexdigest()

    group = shard.row_groups[0]._replace(start=4, bytes=10, sha256=digest(4, 14))
    values = {"bytes": 44, "sha256": digest(0, 44), "footer_sha256": digest(14, 44)}
    lines: list[str] = []
    with pytest.raises(DataError, match="1 of 1 shards differ"):
        verify.verify_shard_set(changed(opened, row_groups=(group,), **values), say=lines.append)
    assert lines[0].startswith(f"{shard.name} is no Parquet file")
