"""The weight file a training starts from: a local path, s3://bucket/key or an https:// URL -> a
local file that `detector.weights` reads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import UsageError
from cluster.storage import files, preflight, uris

HTTPS = "https://"
ANSWER_SECONDS = 10


def absolute(uri: str) -> str:
    """`uris.absolute`, and URLs as they are. `UsageError` for one that could carry a secret into a
    stored configuration.
    """
    if not uri.startswith(HTTPS):
        return uris.absolute(uri)
    parts = urlsplit(uri)
    if "@" in parts.netloc or parts.query or not os.path.basename(parts.path):
        # The URL itself is not repeated: what stands before an @ or after a ? may be a secret.
        raise UsageError(
            f"pretrained, a URL at {parts.hostname}: must name a file, without a user or a query;"
            " download it and give its path instead"
        )
    return uri


def check(uri: str, model: Mapping[str, Any] | None) -> str:
    """Preflight: read the file once, here, and return its sha256, 64 hex characters: the same file
    elsewhere is the same file.

    `UsageError` where it is not there, cannot be fetched or, with `model` (keywords of
    `build_model`), read, or where it does not fit such a network: found by a worker, that would
    have cost the start of all of them.
    """
    with local_file(uri) as path:
        if model is not None:
            import torch

            from detector.baselines import build_model
            from detector.weights import fitting

            with torch.device("meta"):
                network = build_model(**model)
            try:
                fitting(network, path)
            except ValueError as error:
                raise UsageError(str(error).replace(path, uri)) from error
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def publish(uri: str, folder: str, *, digest: str, root: str) -> str:
    """The URI at which every node can read the file: its own in S3 and below the storage `root`,
    else that of a copy in `<folder>/pretrained/`.
    """
    uri = absolute(uri)
    if uri.startswith((uris.S3, uris.absolute(root) + "/")):
        return uri
    copy = uris.join(folder, "pretrained", f"{digest[:12]}-{os.path.basename(uri)}")
    if not files.exists(copy):
        with local_file(uri) as path:
            files.write_bytes(copy, files.read_bytes(path))
    return copy


@contextmanager
def local_file(uri: str) -> Iterator[str]:
    """A local path to read from: the file itself, a copy of the S3 object for as long as it is
    needed, or the URL's file in torch hub's cache.

    `UsageError` where there is no such file.
    """
    uri = absolute(uri)
    if uri.startswith(HTTPS):
        yield downloaded(uri)
        return
    preflight.check_readable(uri)
    if files.size(uri) is None:
        raise UsageError(f"pretrained {uri}: is a folder; name the file of weights in it")
    if not uri.startswith(uris.S3):
        yield uri
        return
    with tempfile.TemporaryDirectory(prefix="pretrained-") as folder:
        # The suffix says how it is read.
        path = os.path.join(folder, os.path.basename(uri))
        with (
            files.plain_errors(uri, "read"),
            files.open_input(uri) as source,
            open(path, "wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 24)
        yield path


def downloaded(url: str) -> str:
    """The URL's file in torch hub's cache (TORCH_HOME), fetched where it is not there yet. A digest
    in its name (resnet50-0676ba61) is checked.
    """
    from torch import hub

    path = cache_path(url)
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        digest = hub.HASH_REGEX.search(os.path.basename(path))
        try:
            # torch's own request has no time limit, so a host that does not answer is found first.
            urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS
            ).close()
            # Downloads beside it and renames, so that processes that fetch at once do not meet.
            hub.download_url_to_file(
                url, path, hash_prefix=digest.group(1) if digest else None, progress=False
            )
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise UsageError(
                f"pretrained {url}: cannot be fetched ({reason}); check the URL, or download it and"
                " give its path"
            ) from error
    return path


def cache_path(url: str) -> str:
    from torch import hub

    name = os.path.basename(urlsplit(url).path)
    # torch hub keeps files by their last name, and many sites call theirs model_final.pkl; only a
    # name with a digest stands for one content.
    folder = "" if hub.HASH_REGEX.search(name) else hashlib.sha256(url.encode()).hexdigest()[:12]
    return os.path.join(hub.get_dir(), "checkpoints", folder, name)
