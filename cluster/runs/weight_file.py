"""The weight file that a training starts from: a local path, s3://bucket/key or https:// URL -> a
local file that `detector.weights` reads.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import UsageError
from cluster.runs.weight_download import download
from cluster.storage import files, preflight, uris
from cluster.storage.scratch import scratch_folder

HTTPS = "https://"


def absolute(uri: str) -> str:
    """`uris.absolute`; an https:// URL stays as it is. `UsageError` for a URL that could carry a
    secret into a stored configuration.
    """
    if not uri.startswith(HTTPS):
        return uris.absolute(uri)
    parts = urlsplit(uri)
    if "@" in parts.netloc or parts.query or not os.path.basename(parts.path):
        # The message does not repeat the URL: the part before an @ or after a ? may be a secret.
        raise UsageError(
            f"pretrained, a URL at {parts.hostname}: must name a file, without a user or a query;"
            " download it and give its path instead"
        )
    return uri


def check(uri: str, model: Mapping[str, Any] | None) -> str:
    """Preflight: read the file once, on this machine, and return its sha256 (64 hex characters),
    which stays the same when the file is moved.

    `UsageError` where the file is missing, cannot be downloaded or, with `model` (keywords of
    `build_model`), cannot be read or does not fit this network. If a worker found that instead,
    the start of all workers would be lost.
    """
    with local_file(uri) as path:
        if model is not None:
            import torch

            from detector.baselines import build_model
            from detector.model import RetinaNet
            from detector.weights import fitting

            with torch.device("meta"):
                network = build_model(**model)
            assert isinstance(network, RetinaNet), "the configuration refuses other architectures"
            try:
                fitting(network, path)
            except ValueError as error:
                if uri.startswith(HTTPS) and not _reads(path):
                    # A damaged file in the cache would be found again at each start.
                    os.unlink(path)
                raise UsageError(str(error).replace(path, uri)) from error
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _reads(path: str) -> bool:
    from detector.tensor_file import read_tensors

    try:
        return bool(read_tensors(path))
    except ValueError:
        return False


def publish(uri: str, folder: str, *, digest: str, root: str) -> str:
    """A URI at which every node can read the file: its own one in S3 and below the storage `root`,
    else that of a copy in `<folder>/pretrained/`.
    """
    uri = absolute(uri)
    if uris.is_remote(uri) or uris.is_below(uri, uris.absolute(root)):
        return uri
    copy = uris.join(folder, "pretrained", f"{digest[:12]}-{os.path.basename(uri)}")
    if not files.exists(copy):
        with local_file(uri) as path:
            files.write_bytes(copy, files.read_bytes(path))
    return copy


@contextmanager
def local_file(uri: str) -> Iterator[str]:
    """A local path to read from: the file itself, a temporary copy of an S3 object, or the
    downloaded file of a URL in torch hub's cache.

    `UsageError` where there is no such file.
    """
    uri = absolute(uri)
    if uri.startswith(HTTPS):
        yield _downloaded(uri)
        return
    preflight.check_readable(uri)
    if files.size(uri) is None:
        raise UsageError(f"pretrained {uri}: is a folder; name the file of weights in it")
    if not uris.is_remote(uri):
        yield uri
        return
    with scratch_folder("pretrained") as folder:
        # The suffix decides how the file is read, so the copy keeps the name.
        path = os.path.join(folder, os.path.basename(uri))
        with (
            files.plain_errors(uri, "read"),
            files.open_input(uri) as source,
            open(path, "wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 24)
        yield path


def _downloaded(url: str) -> str:
    """The URL's file in torch hub's cache (TORCH_HOME), downloaded unless it is there. A digest in
    its name (resnet50-0676ba61) is verified.
    """
    from torch import hub

    path = cache_path(url)
    if not os.path.exists(path):
        digest = hub.HASH_REGEX.search(os.path.basename(path))
        try:
            download(url, path, sha256=digest.group(1) if digest else "")
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(error).replace(path, url).splitlines() or [type(error).__name__]
            raise UsageError(
                f"pretrained {url}: cannot be downloaded ({reason[0][:300]}); check the URL, or"
                " download it yourself and give its path"
            ) from error
    return path


def cache_path(url: str) -> str:
    """The path of the URL's file in torch hub's cache."""
    from torch import hub

    name = os.path.basename(urlsplit(url).path)
    # torch hub stores files by their last name, and many sites call theirs model_final.pkl; only a
    # name with a digest stands for one content.
    folder = "" if hub.HASH_REGEX.search(name) else hashlib.sha256(url.encode()).hexdigest()[:12]
    return os.path.join(hub.get_dir(), "checkpoints", folder, name)
