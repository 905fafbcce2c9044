"""Which file of the images folder each name of a source means: the file of that name, in another
Unicode form, by a second rule or, for a path of another machine, by its last parts.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from cluster.formats.names import composed
from cluster.formats.tails import Tails
from cluster.storage.pictures import is_left_by_tools, suffix_of
from detector.image import SUFFIXES

RENAMED = "file names in another Unicode form than the files, taken as the files have them"
FROM_ELSEWHERE = "paths of another machine, matched with the files that end like them"


@dataclass(frozen=True)
class FileNames:
    """The files that names mean, and that `paths` of another machine mean; and for names without a
    file, what was perhaps meant. `said` counts what is not the plain case.
    """

    names: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)

    def file_of(self, name: str, *, elsewhere: bool) -> str | None:
        return (self.paths if elsewhere else self.names).get(name)


def find_files(names: Sequence[str], paths: Sequence[str], listing: Collection[str]) -> FileNames:
    """The files of `listing`, the names below the images folder of a source, for the names and the
    paths of another machine that the source gives its images.
    """
    spellings = {composed(file): file for file in listing if not file.isascii()}
    found = FileNames()
    for name in names:
        if name in listing:
            found.names[name] = name
        elif (spelling := spellings.get(composed(name))) is not None:
            found.names[name] = spelling
            found.said[RENAMED] += 1
    missing = [name for name in dict.fromkeys(names) if name not in found.names]
    if not missing and not paths:
        return found
    tails = Tails(listing)
    _second_rule(found, missing, listing, tails)
    found.paths.update(tails.match(paths, set(found.names.values())))
    found.said[FROM_ELSEWHERE] += sum(path in found.paths for path in paths)
    without = {name for name in missing if name not in found.names}
    for name in without | {path for path in paths if path not in found.paths}:
        if name not in found.near and (similar := tails.similar(name)) is not None:
            found.near[name] = similar
    return found


def _second_rule(
    found: FileNames, missing: Sequence[str], listing: Collection[str], tails: Tails
) -> None:
    """A rule is believed only if it finds a file of its own for every name that is no file. What it
    finds for some of them alone is near.
    """
    taken = set(found.names.values())
    for said, rule in _rules(listing, tails).items() if missing else ():
        files = {name: file for name in missing if (file := rule(name)) is not None}
        if len(set(files.values()) - taken) == len(missing):
            found.names.update(files)
            found.said[said] += len(files)
            return
        for name, file in files.items():
            found.near.setdefault(name, file)


def _rules(listing: Collection[str], tails: Tails) -> dict[str, Callable[[str], str | None]]:
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
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        return next((end for end in ends if end in listing), None)

    def in_a_folder(name: str) -> str | None:
        files = below[posixpath.basename(name)]
        return _only_one(file for file in files if file.endswith(f"/{name}"))

    return {
        "file names with blanks around them": lambda name: listed(name.strip()),
        "file names with % codes": lambda name: listed(unquote(name)),
        "file names with folders that are not below the images folder": without_folders,
        "files found in a folder below, by their name alone": in_a_folder,
        "file names that begin with other folders than the files": tails.find,
        "files with another suffix than the annotations give": lambda name: _only_one(
            stems[posixpath.splitext(name)[0]]
        ),
    }


def _only_one(files: Iterable[str]) -> str | None:
    candidates = list(files)
    return candidates[0] if len(candidates) == 1 else None
