"""Which format an annotation file has, by how it begins."""

from __future__ import annotations

import re
from typing import Literal

from cluster.storage import files

_HEAD_BYTES = 1 << 16
_COCO = re.compile(r'"(images|annotations)"\s*:\s*\[')
_TASKS = re.compile(r'"(annotations|completions)"\s*:\s*\[')
_LABELSTUDIO = re.compile(r'"(rectanglelabels|polygonlabels|annotation_id)"')


def kind_of(uri: str) -> Literal["coco", "cvat", "labelstudio", "voc"] | None:
    """The format of a file, of which "voc" has many; None where its begin does not tell. Errors:
    see `files.open_input`.
    """
    text = files.read_range(uri, 0, _HEAD_BYTES).decode("utf-8-sig", "replace").lstrip()
    if text.startswith("<"):
        # The first tag that is neither a declaration nor a comment.
        root = re.search(r"<([A-Za-z_][\w.-]*)", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
        name = root[1] if root else None
        return "cvat" if name == "annotations" else "voc" if name == "annotation" else None
    if text.startswith("{") and _COCO.search(text):
        return "coco"
    if text.startswith("["):
        tasks = re.search(r'"data"\s*:\s*\{', text) and _TASKS.search(text)
        return "labelstudio" if tasks or _LABELSTUDIO.search(text) else None
    return None
