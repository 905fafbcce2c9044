"""The images of a source matched with the files in its folders. No image is read."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

import numpy as np

from cluster.formats.annotations import Images, Source
from cluster.formats.names import composed
from cluster.formats.read import in_val
from cluster.prepare.image import MISSING, leave_out
from cluster.shards.quarantine import Quarantined
from cluster.storage import files, parquet_pictures
from cluster.storage.pictures import is_left_by_tools, suffix_of
from cluster.storage.uris import join
from detector.image import SUFFIXES

MAX_FILE_BYTES = 256 << 20
"""A job has the files of a shard in memory; a larger file is a scan or no image at all."""
RENAMED = "file names in another Unicode form than the files, taken as the files have them"
UNLISTED = "a picture in the folder that no record lists"


@dataclass(frozen=True)
class ListedImages:
    """The images of a source matched with the files in its folders. `usable` are positions in
    `images`; the other images are `quarantined`. `repairs` counts names that fit in another form
    alone. `passed_over` counts the pictures in the folders that no record lists.
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
    by_source: list[list[str]] = [[] for _ in folders]
    for name, number in zip(images.names, images.sources_I.tolist(), strict=True):
        by_source[number].append(name)
    listings = [_list_files(folder, own) for folder, own in zip(folders, by_source, strict=True)]
    spellings = [
        {composed(name): name for name in listing if not name.isascii()} for listing in listings
    ]
    clues = _second_clues(source, listings, spellings)
    names: list[str] = []
    usable: list[int] = []
    quarantined: list[Quarantined] = []
    renamed = 0
    sizes_I, changed_I = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    for i, (name, number) in enumerate(zip(images.names, images.sources_I.tolist(), strict=True)):
        listing = listings[number]
        if name not in listing and (spelling := spellings[number].get(composed(name))) is not None:
            name, renamed = spelling, renamed + 1
        name = clues[number].files.get(name, name)
        names.append(name)
        fault, detail = "", ""
        if name not in listing:
            near = clues[number].near.get(name)
            fault, detail = MISSING, f"there is {near}" if near else ""
        elif (size := listing[name][0]) > MAX_FILE_BYTES:
            fault = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB"
            detail = f"{size} bytes"
        if fault:
            entry = leave_out(images[i], fault, category_ids=source.category_ids, detail=detail)
            quarantined.append(entry)
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
    found = Counter({clue.said: len(clue.files) for clue in clues if clue.files})
    return ListedImages(
        images,
        sizes_I,
        changed_I,
        positions,
        quarantined,
        {**({RENAMED: renamed} if renamed else {}), **found},
        {f"{UNLISTED} (such as {unlisted[0]})": len(unlisted)} if unlisted else {},
    )


@dataclass(frozen=True)
class _Clue:
    """Names of a source that are no files, and what settles them: a rule that finds a file for all
    of them, else for some a file that was perhaps meant.
    """

    files: dict[str, str]
    near: dict[str, str]
    said: str = ""


def _second_clues(
    source: Source,
    listings: Sequence[Mapping[str, tuple[int, int]]],
    spellings: Sequence[Mapping[str, str]],
) -> list[_Clue]:
    """One for each source number. A rule is believed only if it finds a file of its own for every
    name that is no file.
    """
    names, numbers = source.images.names, source.images.sources_I.tolist()
    clues = []
    for number, (listing, spelling) in enumerate(zip(listings, spellings, strict=True)):
        own = [name for name, of in zip(names, numbers, strict=True) if of == number]
        missing = [n for n in own if n not in listing and composed(n) not in spelling]
        taken = set(own) - set(missing)
        near: dict[str, str] = {}
        clue = _Clue({}, near)
        for said, rule in _rules(listing).items() if missing else ():
            found = {name: file for name in missing if (file := rule(name)) is not None}
            if len(set(found.values()) - taken) == len(missing):
                clue = _Clue(found, {}, said)
                break
            near |= {name: file for name, file in found.items() if name not in near}
        clues.append(clue)
    return clues


def _rules(listing: Mapping[str, object]) -> dict[str, Callable[[str], str | None]]:
    """Each rule finds the file that a name may mean, by what to say about it."""
    below: defaultdict[str, list[str]] = defaultdict(list)
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for file in listing:
        if suffix_of(file) in SUFFIXES and not is_left_by_tools(file):
            below[posixpath.basename(file)].append(file)
            stems[posixpath.splitext(file)[0]].append(file)

    def listed(name: str) -> str | None:
        return name if name in listing else None

    def without_folders(name: str) -> str | None:
        parts = name.split("/")
        tails = ("/".join(parts[start:]) for start in range(1, len(parts)))
        return next((tail for tail in tails if tail in listing), None)

    def by_tail(name: str) -> str | None:
        """The file that ends like the name for the most folders, at least for one: numbers alone
        are file names of several folders.
        """
        parts = name.split("/")
        for start in range(1, len(parts) - 1):
            tail = "/".join(parts[start:])
            if ending := [file for file in below[parts[-1]] if f"/{file}".endswith(f"/{tail}")]:
                return only_one(ending)
        return None

    def only_one(candidates: list[str]) -> str | None:
        return candidates[0] if len(candidates) == 1 else None

    return {
        "file names with blanks around them": lambda name: listed(name.strip()),
        "file names with % codes": lambda name: listed(unquote(name)),
        "file names with folders that are not below the images folder": without_folders,
        "files found in a folder below, by their name alone": lambda name: only_one(
            [file for file in below[posixpath.basename(name)] if file.endswith(f"/{name}")]
        ),
        "file names that begin with other folders than the files": by_tail,
        "files with another suffix than the annotations give": lambda name: only_one(
            stems[posixpath.splitext(name)[0]]
        ),
    }


def _list_files(folder: str, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(bytes, time of the last change in ns) of each file, by its name relative to the folder, and
    of those `names` that are pictures inside a Parquet file: its time, and the mean of the bytes.
    """
    inside = {
        name: place[0] for name in names if (place := parquet_pictures.split(name)) is not None
    }
    uris = {file: join(folder, file) for file in set(inside.values())}
    status = {
        file: (parquet_pictures.mean_size(uri), files.last_change(uri))
        for file, uri in uris.items()
    }
    listing = {name: status[file] for name, file in inside.items()}
    # A Parquet file with all its pictures may lie in any folder, whose files do not matter.
    return listing if inside and len(inside) == len(names) else listing | _list_folder(folder)


def _list_folder(folder: str) -> dict[str, tuple[int, int]]:
    return {
        uri[len(folder) + 1 :]: (size, changed) for uri, size, changed in files.list_changes(folder)
    }
