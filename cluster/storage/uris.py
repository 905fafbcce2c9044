"""Names of files and folders: an absolute local path or scheme://bucket/key."""

from __future__ import annotations

import os
import posixpath
import re

from cluster.errors import UsageError
from cluster.storage import schemes

FORMS = " or ".join(
    ["an absolute local path", *(f"{scheme}://bucket/key" for scheme in schemes.STORES)]
)
"""The URIs that the project accepts, as part of a sentence."""
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*")
_STARTS = tuple(f"{scheme}:" for scheme in schemes.STORES)
# Also after its two slashes became one: a folder named `s3:` is always a mistake.
_URI_INSIDE = re.compile(rf"/({'|'.join(schemes.STORES)}):(/|$)|://", re.IGNORECASE)
_ODD_NAMES = frozenset(("", ".", ".."))


def absolute(uri: str) -> str:
    """The plain form of what a user gave. A relative local path (also with ~) becomes absolute,
    file:///path becomes /path, S3://bucket/key/ becomes s3://bucket/key.

    `UsageError` where it could mean something else than it says: another scheme, a slash that is
    missing or too many, a blank at an end. No message repeats what may be a secret.
    """
    given = uri.strip()
    if not given:
        raise UsageError(f"an empty path was given; give {FORMS}")
    word, separator, rest = given.partition("://")
    scheme = word.lower() if separator and _SCHEME.fullmatch(word) else None
    if scheme in schemes.STORES:
        plain = f"{scheme}://{_plain_key(scheme, rest)}"
    elif scheme not in (None, "file"):
        raise UsageError(f"the scheme {word}:// is not supported; give {FORMS}")
    elif given.lower().startswith("file:"):
        plain = os.path.normpath(_path_of_file_uri(given))
    else:
        plain = _plain_path(given)
    # Object storage and disks would take a blank for a part of the name.
    if uri != given or "\0" in uri:
        raise UsageError(f"{uri!r}: has a blank or a line end at an end, or a zero byte; remove it")
    return plain


def _plain_path(path: str) -> str:
    word = path.split("/", 1)[0].partition(":")[0]
    if path.startswith(f"{word}:/") or path.lower().startswith(_STARTS):
        raise UsageError(f"{word}: without :// is neither a scheme nor a folder; give {FORMS}")
    if _URI_INSIDE.search(path):
        raise UsageError(f"a local path with a URI behind it was given; give one of them, {FORMS}")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        name = path.split("/", 1)[0]
        raise UsageError(
            f"{path}: {name} is no user's home folder on this machine; write ./{name} for a local"
            " folder of this name"
        )
    # POSIX lets two slashes at the start stand for something else; no Linux file system does.
    return "/" + os.path.abspath(expanded).lstrip("/")


def is_plain(uri: str) -> bool:
    """Whether object storage can be asked for this URI of a listing: the client takes an empty
    name, . and .. between slashes for mistakes, although a key may have them.
    """
    scheme, path = schemes.split(uri)
    return scheme is None or not _ODD_NAMES & set(path.split("/"))


def _plain_key(scheme: str, path: str) -> str:
    """bucket/key without a slash at its end."""
    bucket, _, key = path.rstrip("/").partition("/")
    if not bucket or "@" in bucket or ":" in bucket:
        # The message does not repeat the URI: the part before an @ may be a secret.
        raise UsageError(
            f"a URI with {scheme}:// must have the form {scheme}://bucket/key; put credentials"
            f" and the endpoint into the environment ({schemes.STORES[scheme].ENVIRONMENT}...)"
        )
    if key and _ODD_NAMES & set(key.split("/")):
        plain = posixpath.normpath(posixpath.join("/", key))
        raise UsageError(
            f"{scheme}://{bucket}/{key}: object storage takes an empty name between slashes, . and"
            f" .. for a part of the key; write {scheme}://{bucket}{plain.rstrip('/')}"
        )
    return posixpath.join(bucket, key) if key else bucket


def _path_of_file_uri(uri: str) -> str:
    """The path of file:/path, file:///path or file://localhost/path."""
    rest = uri[len("file:") :]
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, name = rest[2:].partition("/")
        path = slash + name
    # A URI would write these characters as %25, %3F and %23; a path has them as they are.
    if host not in ("", "localhost") or not path.startswith("/") or set(path) & set("%?#"):
        raise UsageError(
            "a URI with file: must have the form file:///path, without a host, %, ? and #; give the"
            " plain path"
        )
    return "/" + path.lstrip("/")


def is_remote(uri: str) -> bool:
    """Whether the URI is in object storage, which every node can read; a local path may exist on
    one node alone.
    """
    return schemes.store_of(uri) is not None


def join(uri: str, *names: str) -> str:
    return posixpath.join(uri.rstrip("/") or "/", *names)


def is_below(uri: str, folder: str) -> bool:
    """Whether `uri` names something inside `folder`; both are absolute."""
    return uri.startswith(folder.rstrip("/") + "/")


def relative_to(uri: str, folder: str) -> str:
    """The name of `uri` relative to `folder`, in which it must be."""
    assert is_below(uri, folder), (uri, folder)
    return uri[len(folder.rstrip("/")) + 1 :]


def refuse_job_folder(option: str, path: str) -> None:
    """`UsageError` in a job of Ray for a place that goes with it: a relative path, or one in the
    copy of the working directory that the node of the driver deletes. `path` may be a URI.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ or "://" in path:
        return
    expanded = os.path.expanduser(path)
    if not os.path.isabs(expanded) or _PACKAGES in os.path.abspath(expanded):
        raise UsageError(
            f"{option} {path}: is on the node of this job alone, and deleted with it; give a bucket"
            " or the absolute path of a folder that all nodes share"
        )


_PACKAGES = "/runtime_resources/working_dir_files/"
"""In the path of what Ray unpacks for a job."""
