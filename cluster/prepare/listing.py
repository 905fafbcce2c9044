"""The images of a source matched with the files in its folders. No image is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.formats.annotations import Images, Source
from cluster.formats.names import composed
from cluster.formats.read import in_val
from cluster.prepare.image import MISSING, leave_out
from cluster.shards.quarantine import Quarantined
from cluster.storage import files
from cluster.storage.pictures import is_left_by_tools, suffix_of
from detector.image import SUFFIXES

MAX_FILE_BYTES = 256 << 20
"""A job has the files of a shard in memory; a larger file is a scan or no image at all."""
UNLISTED = "a picture in the folder that no record lists"


@dataclass(frozen=True)
class ListedImages:
    """The images of a source matched with the files in its folders. `usable` are positions in
    `images`; the other images are `quarantined`. `renamed` counts names that the files have in
    another Unicode form. `passed_over` counts the pictures in the folders that no record lists.
    """

    images: Images
    sizes_I: np.ndarray
    changed_I: np.ndarray
    usable: np.ndarray
    quarantined: list[Quarantined]
    renamed: int
    passed_over: dict[str, int]


def match_files(
    source: Source, folders: Sequence[str], *, split: str = "all", val_share: float = 0.1
) -> ListedImages:
    """List the folders, one for each source number, and look for the file of every image of this
    split.
    """
    images = source.images
    listings = [_list_folder(folder) for folder in folders]
    spellings = [
        {composed(name): name for name in listing if not name.isascii()} for listing in listings
    ]
    names: list[str] = []
    usable: list[int] = []
    quarantined: list[Quarantined] = []
    renamed = 0
    sizes_I, changed_I = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    for i, (name, number) in enumerate(zip(images.names, images.sources_I.tolist(), strict=True)):
        listing = listings[number]
        if name not in listing and (spelling := spellings[number].get(composed(name))) is not None:
            name, renamed = spelling, renamed + 1
        names.append(name)
        fault = None
        if name not in listing:
            fault = MISSING
        elif (size := listing[name][0]) > MAX_FILE_BYTES:
            fault = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB ({size} bytes)"
        if fault is not None:
            quarantined.append(leave_out(images[i], fault, category_ids=source.category_ids))
            continue
        sizes_I[i], changed_I[i] = listing[name]
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
    return ListedImages(
        images,
        sizes_I,
        changed_I,
        positions,
        quarantined,
        renamed,
        {f"{UNLISTED} (such as {unlisted[0]})": len(unlisted)} if unlisted else {},
    )


def _list_folder(folder: str) -> dict[str, tuple[int, int]]:
    """(bytes, time of the last change in ns) of each file, by its name relative to the folder."""
    return {
        uri[len(folder) + 1 :]: (size, changed) for uri, size, changed in files.list_changes(folder)
    }
