"""The annotation files of a folder that has one for each picture, or several tables."""

from __future__ import annotations

from cluster.errors import DataError
from cluster.storage import files
from cluster.storage.pictures import is_left_by_tools


def list_annotations(folder: str, suffix: str) -> list[str]:
    """The URIs of the files with a suffix below the folder, sorted, without those that tools left
    behind. `DataError` where one cannot be read, such as a link that leads nowhere: its picture
    would count as one without objects.
    """
    entries = [
        entry
        for entry in files.list_entries(folder)
        if entry.uri.lower().endswith(suffix) and not is_left_by_tools(entry.uri[len(folder) + 1 :])
    ]
    faulty = [entry for entry in entries if entry.fault]
    if faulty:
        raise DataError(
            f"{faulty[0].uri}: is {faulty[0].fault}; {len(faulty)} of the {len(entries)}"
            f" {suffix} files in {folder} cannot be read: mend or remove them"
        )
    return [entry.uri for entry in entries]
