"""The images of a source matched with the files in its folders. No image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.formats.annotations import Images, Source
from cluster.formats.read import in_val
from cluster.prepare.file_names import find_files
from cluster.prepare.image import MISSING, leave_out
from cluster.shards.quarantine import Quarantined
from cluster.storage import files, parquet_pictures
from cluster.storage.local_tree import Entry
from cluster.storage.pictures import is_left_by_tools, suffix_of
from cluster.storage.uris import join
from detector.image import SUFFIXES

MAX_FILE_BYTES = 256 << 20
"""A job has the files of a shard in memory; a larger file is a scan or no image at all."""
NOT_BELOW = "its path is of another machine, and not one file of the images folder ends like it"
UNLISTED = "a picture in the folder that no record lists"


@dataclass(frozen=True)
class ListedImages:
    """The images of a source matched with the files in its folders. `usable` are positions in
    `images`; the other images are `quarantined`. `repairs` counts names that fit in another form
    alone or are paths of another machine. `passed_over` counts the pictures in the folders that no
    record lists.
    """

    images: Images
    sizes_I: np.ndarray
    changed_I: np.ndarray
    usable: np.ndarray
    quarantined: list[Quarantined]
    repairs: dict[str, int]
    passed_over: dict[str, int]


def match_files(
    source: Source, folders: Sequence[str], *, split: str = "all", val_share: float = 0.1
) -> ListedImages:
    """List the folders, one for each source number, and look for the file of every image of this
    split.
    """
    images = source.images
    sources, elsewhere = images.sources_I.tolist(), images.elsewhere_I.tolist()
    given: list[tuple[list[str], list[str]]] = [([], []) for _ in folders]
    for name, number, outside in zip(images.names, sources, elsewhere, strict=True):
        given[number][outside].append(name)
    listings = [_list_files(folder, *both) for folder, both in zip(folders, given, strict=True)]
    found = [
        find_files(own, paths, listing)
        for (own, paths), listing in zip(given, listings, strict=True)
    ]
    names: list[str] = []
    usable: list[int] = []
    quarantined: list[Quarantined] = []
    sizes_I, changed_I = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    for i, (number, outside) in enumerate(zip(sources, elsewhere, strict=True)):
        listing, name = listings[number], images.names[i]
        file = found[number].file_of(name, elsewhere=outside)
        names.append(file or name)
        fault, detail = "", ""
        if file is None:
            fault = NOT_BELOW if outside else MISSING
            detail = _hint(name, found[number].near.get(name))
        elif listing[file].fault:
            fault = f"it is {listing[file].fault}"
        elif (size := listing[file].size) > MAX_FILE_BYTES:
            fault = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB"
            detail = f"{size} bytes"
        if file is None or fault:
            record = images[i]._replace(file_name=f"/{name}") if outside else images[i]
            entry = leave_out(record, fault, category_ids=source.category_ids, detail=detail)
            quarantined.append(entry)
            continue
        sizes_I[i], changed_I[i] = listing[file].size, listing[file].changed
        usable.append(i)
    positions = np.array(usable, np.int64)
    named = {*names, *(entry.where for entry in source.quarantined if entry.what == "image")}
    unlisted = sorted(
        name
        for listing in dict(zip(folders, listings, strict=True)).values()
        for name in listing
        if name not in named
        and suffix_of(name) in SUFFIXES
        and not is_left_by_tools(name)
        and (split == "all" or in_val(name, val_share) == (split == "val"))
    )
    images = replace(images, names=names)
    said = sum((one.said for one in found), Counter[str]())
    return ListedImages(
        images,
        sizes_I,
        changed_I,
        positions,
        quarantined,
        dict(said),
        {f"{UNLISTED} (such as {unlisted[0]})": len(unlisted)} if unlisted else {},
    )


def _hint(name: str, near: str | None) -> str:
    """The file that was perhaps meant."""
    if near is None:
        return ""
    case = near != name and near.casefold() == name.casefold()
    return f"there is {near}{', which differs in capitals alone' if case else ''}"


def _list_files(folder: str, names: Sequence[str], paths: Sequence[str]) -> dict[str, Entry]:
    """All below the folder by its name relative to it, and those `names` that are pictures inside a
    Parquet file: the time of its last change, and the mean of their bytes. `paths` of another
    machine are looked for in the folder.
    """
    inside = {
        name: place[0] for name in names if (place := parquet_pictures.split(name)) is not None
    }
    uris = {file: join(folder, file) for file in set(inside.values())}
    entries = {
        file: Entry(uri, parquet_pictures.mean_size(uri), files.last_change(uri))
        for file, uri in uris.items()
    }
    listing = {name: entries[file] for name, file in inside.items()}
    # A Parquet file with all its pictures may lie in any folder, whose files do not matter.
    if inside and len(inside) == len(names) and not paths:
        return listing
    return listing | {entry.uri[len(folder) + 1 :]: entry for entry in files.list_entries(folder)}
