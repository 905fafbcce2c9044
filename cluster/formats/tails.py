"""Which file of a folder a path of another machine means: /home/me/pets/cats/1.jpg is cats/1.jpg
here, and train/cats/1.jpg where that is the only one that ends so.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import takewhile

from cluster.formats.names import composed
from cluster.storage.pictures import is_left_by_tools


class Tails:
    """The files of a folder, found by the last parts of their names."""

    def __init__(self, files: Iterable[str]):
        self.by_last: defaultdict[str, list[str]] = defaultdict(list)
        self.by_folded: defaultdict[str, list[str]] = defaultdict(list)
        for file in files:
            if not is_left_by_tools(file):
                last = composed(posixpath.basename(file))
                self.by_last[last].append(file)
                self.by_folded[last.casefold()].append(file)

    def match(self, paths: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
        """The file of each path, for those that have one of their own that is not `taken`: of two
        paths that end like the same file, the one that shares more with it has it.
        """
        claims: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for path in dict.fromkeys(paths):
            most, file = self._find(path)
            if file is not None and file not in taken:
                claims[file].append((most, path))
        matched = {}
        for file, rivals in claims.items():
            shared, path = max(rivals)
            if sum(count == shared for count, _ in rivals) == 1:
                matched[path] = file
        return matched

    def find(self, path: str) -> str | None:
        """The file of a path: the one that shares the most last parts with it; of several such
        files the one whose whole name is the end of the path. None where that is not one.
        """
        return self._find(path)[1]

    def _find(self, path: str) -> tuple[int, str | None]:
        """How many last parts the path shares with its file, and the file."""
        parts = composed(path).split("/")
        most, best = _longest(parts, self.by_last.get(parts[-1], []), composed)
        whole = [file for file in best if file.count("/") + 1 == most]
        # Numbers alone are file names of several folders: a file in a folder below must share it.
        enough = whole or most > 1 or most == len(parts)
        return most, (whole or best)[0] if enough and len(whole or best) == 1 else None

    def similar(self, path: str) -> str | None:
        """The file that was perhaps meant, for a message: it has the last part of the path, perhaps
        with other capitals.
        """
        parts = _folded(path).split("/")
        _, best = _longest(parts, self.by_folded.get(parts[-1], []), _folded)
        return best[0] if best else None


def _longest(
    parts: Sequence[str], files: Sequence[str], plain: Callable[[str], str]
) -> tuple[int, list[str]]:
    """The largest number of last parts that a file shares with `parts`, and the files that do."""
    counts = []
    for file in files:
        pairs = zip(reversed(parts), reversed(plain(file).split("/")), strict=False)
        counts.append(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
    most = max(counts, default=0)
    return most, [file for file, count in zip(files, counts, strict=True) if count == most]


def _folded(name: str) -> str:
    return composed(name).casefold()
