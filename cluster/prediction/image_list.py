"""Which images a prediction is about: a folder, a bucket, a pattern, a list in a file, or a shard
set, as Arrow tables of a few rows each, so that a list of any length needs little memory.

The columns are those of `LISTED` and, behind them, the further columns of a list, which are carried
through to the results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import pyarrow as pa

from cluster.errors import DataError, UsageError
from cluster.prediction import listed_files
from cluster.shards.index import INDEX, open_shard_set
from cluster.storage import files, parquet_pictures, pictures, preflight
from cluster.storage.local_tree import Entry
from cluster.storage.uris import absolute, join
from detector.image import FORMATS

LISTED = pa.schema(
    [
        ("uri", pa.string()),
        ("image_id", pa.int64()),
        ("size", pa.int64()),
        ("changed", pa.int64()),
    ]
)
"""`size` in bytes and `changed` in ns since 1970, of the listing; null where there was none.
`image_id` is null where the list has no ids.
"""
ROWS = 1024
"""Rows of a table."""
WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ImageList:
    """A list of images that can be read again and again; it is the same list each time, unless
    somebody changes it.
    """

    uri: str
    kind: str
    """In words, such as "folder"."""
    tables: Callable[[], Iterator[pa.Table]]
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """The further columns."""
    has_ids: bool = False
    folder: str = ""
    """The folder that the names of the images start from; empty where there is none."""
    passed_over: Callable[[], Mapping[str, int]] = dict
    """Files that were no images, by reason, of the last time that the list was read to its end."""

    def rows(self) -> Iterator[pa.Table]:
        """The tables. `DataError` where there is no image."""
        tables = (table for table in self.tables() if table.num_rows)
        first = next(tables, None)
        if first is None:
            there = "; ".join(f"{count} x {why}" for why, count in self.passed_over().items())
            where = "below it" if self.folder else "in it"
            raise DataError(
                f"{self.uri}: no picture {where} ({there or 'it is empty'}); check the {self.kind}"
            )
        return chain([first], tables)

    def uris(self) -> Iterator[str]:
        """Of all images, in order."""
        return (uri for table in self.rows() for uri in table["uri"].to_pylist())


def open_images(images: str, *, column: str = "uri") -> ImageList:
    """What `images` names. `column` has the URIs in a list with columns. `UsageError` where nothing
    is there, `DataError` where it is of no kind that can be read.
    """
    images = absolute(images)
    base, wild = _split_pattern(images)
    if wild and not files.exists(images):
        preflight.check_readable(base)
        return _of_pattern(images, base)
    preflight.check_readable(images)
    if files.size(images) is None:
        if files.exists(join(images, INDEX)):
            return _of_shard_set(images)
        return _of_folder(images)
    if (read := listed_files.reader_of(images)) is not None:
        listed = read(images, column)
        return ImageList(
            images,
            "list",
            lambda: map(_completed, listed.tables()),
            carried=listed.carried,
            has_ids=listed.has_ids,
        )
    if not pictures.is_picture(images):
        raise DataError(
            f"{images}: is a file and no picture that can be read ({', '.join(FORMATS)}); give a"
            " picture, a folder of pictures, or a list of them as"
            f" {', '.join(listed_files.READERS)}"
        )
    return _of_picture(images)


def given_images(uri: str, ids: Mapping[str, int | None]) -> ImageList:
    """These images with their ids, which somebody has read at `uri`."""

    def tables() -> Iterator[pa.Table]:
        return _tables(({"uri": one, "image_id": id_} for one, id_ in ids.items()), LISTED)

    return ImageList(uri, "list", tables, has_ids=True)


def numbered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables with the position in the list, from 1, as id."""
    start = 1
    for table in tables:
        yield with_ids(table, range(start, start + table.num_rows))
        start += table.num_rows


def with_ids(table: pa.Table, ids: Iterable[int | None]) -> pa.Table:
    place = table.schema.get_field_index("image_id")
    return table.set_column(place, LISTED.field("image_id"), pa.array(ids, pa.int64()))


def _of_folder(folder: str) -> ImageList:
    listing = _Listing(folder, lambda uri: True)
    return ImageList(
        folder, "folder", listing.tables, folder=folder, passed_over=listing.passed_over
    )


def _of_pattern(pattern: str, base: str) -> ImageList:
    matches = re.compile(_expression(pattern)).fullmatch
    listing = _Listing(base, lambda uri: matches(uri) is not None)
    return ImageList(
        pattern, "pattern", listing.tables, folder=base, passed_over=listing.passed_over
    )


def _of_picture(uri: str) -> ImageList:
    entry = {"uri": uri, "size": files.size(uri), "changed": files.last_change(uri)}
    return ImageList(
        uri, "picture", lambda: _tables([entry], LISTED), folder=uri.rpartition("/")[0]
    )


def _of_shard_set(folder: str) -> ImageList:
    """The images that are stored in a set, by their ids in it, and `file_name`."""
    shard_set = open_shard_set(folder)
    carried = pa.schema([("file_name", pa.string())])

    def tables() -> Iterator[pa.Table]:
        for shard in shard_set.shards:
            uri = join(shard_set.uri, shard.name)
            with parquet_pictures.open_parquet(uri) as file:
                start = 0
                for batch in file.iter_batches(ROWS, columns=["image_id", "file_name"]):
                    rows = range(start, start + batch.num_rows)
                    start += batch.num_rows
                    named = [parquet_pictures.name_of_row(uri, row) for row in rows]
                    table = pa.table({"uri": named, "image_id": batch.column("image_id")})
                    yield _completed(table.append_column("file_name", batch.column("file_name")))

    return ImageList(folder, "shard set", tables, carried=carried, has_ids=True)


class _Listing:
    """The pictures below a folder whose URI is `wanted`."""

    def __init__(self, folder: str, wanted: Callable[[str], bool]):
        self.folder, self.wanted = folder, wanted
        self._passed: dict[str, int] = {}

    def tables(self) -> Iterator[pa.Table]:
        listing = pictures.Listing(self.folder)
        entries = (_row(entry) for entry in listing if self.wanted(entry.uri))
        yield from _tables(entries, LISTED)
        self._passed = {**listing.passed_over, **listing.others}

    def passed_over(self) -> Mapping[str, int]:
        return self._passed


def _row(entry: Entry) -> dict[str, object]:
    return {"uri": entry.uri, "size": entry.size, "changed": entry.changed}


def _tables(rows: Iterable[Mapping[str, object]], schema: pa.Schema) -> Iterator[pa.Table]:
    rows = iter(rows)
    while some := list(islice(rows, ROWS)):
        yield pa.Table.from_pylist(some, schema=schema)


def _completed(table: pa.Table) -> pa.Table:
    """The columns of `LISTED`, null where the table has none, and then all others."""
    first = [
        table[column.name].cast(column.type)
        if column.name in table.column_names
        else pa.nulls(table.num_rows, column.type)
        for column in LISTED
    ]
    others = [name for name in table.column_names if name not in LISTED.names]
    fields: Sequence[pa.Field] = [*LISTED, *(table.schema.field(name) for name in others)]
    return pa.table([*first, *(table[name] for name in others)], schema=pa.schema(fields))


def _split_pattern(uri: str) -> tuple[str, bool]:
    """The folder in front of the first name with a wildcard, and whether there is one."""
    found = WILD.search(uri)
    if found is None:
        return uri, False
    base = uri[: found.start()].rpartition("/")[0]
    if not base or base.endswith((":/", "/")):
        raise UsageError(
            f"{uri}: the pattern has a wildcard in the name of the bucket or top-level folder;"
            " write that name out"
        )
    return base, True


def _expression(pattern: str) -> str:
    """The regular expression of a pattern: * and ? stand for characters of one name, ** for any
    number of folders, [ab] and [!ab] for one of some characters.
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    made = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            made.append(re.escape(part))
        elif part in known:
            made.append(known[part])
        else:
            inner = part[1:-1].replace("\\", r"\\")
            made.append(f"[^{inner[1:]}]" if inner[:1] in ("!", "^") else f"[{inner}]")
    return "(?s)" + "".join(made)
