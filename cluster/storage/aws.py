"""The environment of S3, read as boto3 reads it: MLflow gets artifacts with boto3, the data comes
through pyarrow, and both must reach the same place. docs/reference/environment.md has the rules.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cluster.errors import UsageError

PREFIX = "AWS_"
_AWS_ITSELF = "https://s3.amazonaws.com"


class Surroundings(NamedTuple):
    """What a client is made from."""

    settings: tuple[tuple[str, str], ...]
    """The variables of AWS, sorted."""
    proxy: str | None
    """URL."""
    ca_bundle: str | None
    """Path of the certificates that are trusted."""


def surroundings() -> Surroundings:
    """Those of this moment. Also sets, for this process, what other clients in it need: MLflow's
    boto3, and those of Ray.
    """
    # By default pyarrow's client uploads in chunks with a checksum after them; Ceph refuses that
    # with 411 and other servers with 501. A value that the user has set stays.
    if ".amazonaws." not in (endpoint_url() or ".amazonaws."):
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    # boto3 reads AWS_DEFAULT_REGION only.
    if os.environ.get("AWS_REGION"):
        os.environ["AWS_DEFAULT_REGION"] = os.environ["AWS_REGION"]
    names = sorted(name for name in os.environ if name.startswith(PREFIX))
    settings = tuple((name, os.environ[name]) for name in names)
    bundle = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or None
    return Surroundings(settings, _proxy(), bundle)


def endpoint_url() -> str | None:
    """None means AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _proxy() -> str | None:
    endpoint = urlsplit(endpoint_url() or _AWS_ITSELF)
    if not endpoint.hostname or proxy_bypass(endpoint.hostname):
        return None
    proxy = getproxies().get(endpoint.scheme) or None
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def check(found: Surroundings) -> None:
    """`UsageError` for what names nothing: the clients would pass over it, each in its way."""
    settings = dict(found.settings)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        url = settings.get(name)
        # Workers get it, and Ray shows what they get: it has no user and no query.
        if url and not re.fullmatch(r"https?://[^/@?][^@?]*", url):
            raise UsageError(
                f"{name}: must be http://host:port or https://host:port; keys go into"
                " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    if found.proxy is not None and not re.fullmatch(r"https?://[^/@:]+:\d+/?", found.proxy):
        # Ray stores its clients beside a run, with all that they were made from.
        raise UsageError(
            "HTTP_PROXY or HTTPS_PROXY: for S3 it must be http://host:port without a user; correct"
            " it, or name the host of the endpoint in NO_PROXY"
        )
    if found.ca_bundle is not None and not os.path.isfile(found.ca_bundle):
        raise UsageError(
            f"AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE {found.ca_bundle}: there is no such file of"
            " certificates; correct the variable or unset it"
        )
    profile = settings.get("AWS_PROFILE") or settings.get("AWS_DEFAULT_PROFILE")
    if profile and profile != "default":
        known = _profiles(settings)
        if profile not in known:
            raise UsageError(
                f"AWS_PROFILE {profile!r}: there is no such profile; there"
                f" {'are ' + ', '.join(sorted(known)) if known else 'is none'} in ~/.aws/config and"
                " ~/.aws/credentials (or AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE)"
            )


def _profiles(settings: Mapping[str, str]) -> set[str]:
    config = settings.get("AWS_CONFIG_FILE") or "~/.aws/config"
    credentials = settings.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    # In the first file the section of a profile is [profile name], in the second [name].
    sections = [section.split() for section in _sections(config)]
    return {words[1] for words in sections if words[0] == "profile" and len(words) == 2} | set(
        _sections(credentials)
    )


def _sections(path: str) -> list[str]:
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    try:
        parser.read(os.path.expanduser(path), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        raise UsageError(f"{path}: is not a configuration file of AWS; correct it") from None
    return parser.sections()
