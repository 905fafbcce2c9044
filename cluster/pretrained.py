"""The weight file a training starts from: a local path, s3://bucket/key or an https:// URL -> a local file that `detector.weights` reads."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from cluster import storage
from cluster.errors import PlainError, UsageError

HTTPS = "https://"
ANSWER_SECONDS = 10


def absolute(uri: str) -> str:
    """`storage.absolute`, and URLs as they are. `UsageError` for one that could carry a secret into a stored configuration."""
    if not uri.startswith(HTTPS):
        return storage.absolute(uri)
    parts = urlsplit(uri)
    if "@" in parts.netloc or parts.query or not os.path.basename(parts.path):
        # The URL itself is not repeated: what stands before an @ or after a ? may be a secret.
        raise UsageError(f"pretrained, a URL at {parts.hostname}: must name a file, without a user or a query; download it and give its path instead")
    return uri


def check(uri: str) -> None:
    """Preflight, without reading it: the file is there. `UsageError` otherwise."""
    uri = absolute(uri)
    if not uri.startswith(HTTPS):
        storage.check_readable(uri)
        filesystem, path = storage.resolve(uri)
        if not filesystem.get_file_info(path).is_file:
            raise UsageError(f"pretrained {uri}: is a folder; name the file of weights in it")
        return
    if os.path.exists(cache_path(uri)):
        return
    try:
        urllib.request.urlopen(urllib.request.Request(uri, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise UsageError(f"pretrained {uri}: cannot be fetched ({storage.reason(error)}); check the URL, or download it and give its path") from error


@contextmanager
def local_file(uri: str) -> Iterator[str]:
    """A local path to read from: the file itself, a copy of the S3 object for as long as it is needed, or the URL's file in torch hub's cache."""
    uri = absolute(uri)
    if uri.startswith(HTTPS):
        yield downloaded(uri)
    elif uri.startswith(storage.S3):
        with tempfile.TemporaryDirectory(prefix="pretrained-") as folder:
            # The suffix says how it is read.
            path = os.path.join(folder, os.path.basename(uri))
            with storage.plain_errors(uri, "read"), storage.open_input(uri) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 24)
            yield path
    else:
        yield uri


def downloaded(url: str) -> str:
    """The URL's file in torch hub's cache (TORCH_HOME), fetched where it is not there yet. A digest in its name (resnet50-0676ba61) is checked."""
    from torch import hub

    path = cache_path(url)
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        digest = hub.HASH_REGEX.search(os.path.basename(path))
        try:
            # Downloads beside it and renames, so that ranks that fetch at once do not meet.
            hub.download_url_to_file(url, path, hash_prefix=digest.group(1) if digest else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise PlainError(f"pretrained {url}: cannot be fetched ({error}); run the command again, or download it and give its path") from error
    return path


def cache_path(url: str) -> str:
    from torch import hub

    name = os.path.basename(urlsplit(url).path)
    # torch hub keeps files by their last name, and many sites call theirs model_final.pkl; only a name with a digest stands for one content.
    folder = "" if hub.HASH_REGEX.search(name) else hashlib.sha256(url.encode()).hexdigest()[:12]
    return os.path.join(hub.get_dir(), "checkpoints", folder, name)
