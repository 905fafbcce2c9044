"""The folder that a shard set is written to: which files in it are prepare's own, and that it is
not the source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from cluster.errors import UsageError
from cluster.formats.read import SourcePaths
from cluster.prepare.shard_job import PROGRESS
from cluster.shards.format import REPORT
from cluster.shards.index import INDEX
from cluster.shards.quarantine import QUARANTINE
from cluster.storage import files, uris


def refuse_sources(output: str, sources: Sequence[SourcePaths], against: Sequence[str]) -> None:
    """`UsageError` where a set written to `output` would change a source or a set of `against`, by
    whatever name they are called.
    """
    target = _resolve_links(output)
    for source in sources:
        for flag, uri in (("images", source.images), ("annotations", source.annotations)):
            if uri is None:
                continue
            path = _resolve_links(uri)
            if path == target or target.startswith(path + "/"):
                raise UsageError(
                    f"--output {output}: is --{flag} {uri} or lies in it; the source is never"
                    " written to, give another folder"
                )
            if path.startswith(target + "/") and _is_written(path[len(target) + 1 :]):
                raise UsageError(
                    f"--output {output}: --{flag} {uri} has the name of a file that is written"
                    " there; give another folder"
                )
    for uri in against:
        if _resolve_links(uri) == target:
            raise UsageError(f"--against {uri}: is the output itself; name the other shard sets")


def refuse_foreign(output: str) -> None:
    """`UsageError` where files of the names that are written to `output` lie there, and neither a
    set nor the notes of an interrupted prepare: they are somebody else's.
    """
    names = files.list_names(output)
    ours = {INDEX, PROGRESS} & set(names)
    foreign = sorted(name for name in names if _is_shard(name) or name == REPORT)
    if foreign and not ours:
        raise UsageError(
            f"--output {output}: has {foreign[0]}, a name that is written there, but no {INDEX}, so"
            " it is not a shard set; give another folder, or move the file"
        )


def _resolve_links(uri: str) -> str:
    return uri if uris.is_remote(uri) else os.path.realpath(uri)


def _is_written(name: str) -> bool:
    """Whether prepare writes or deletes a file of this name, relative to the folder of a set."""
    return name.split("/")[0] in (INDEX, QUARANTINE, REPORT, PROGRESS) or _is_shard(name)


def _is_shard(name: str) -> bool:
    return re.fullmatch(r"shard-\d{5,}-of-\d{5,}\.parquet", name) is not None


def remove_other_shards(output: str, names: set[str]) -> None:
    """Delete the shards of a former run that cut the source differently, and no other file."""
    for name in files.list_names(output):
        if _is_shard(name) and name not in names:
            files.delete_file(uris.join(output, name))
