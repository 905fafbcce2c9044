"""The versions and aliases of the MLflow model registry, as they are; `promotion` changes them.

Aliases, not stages: `challenger` is the newest version, `champion` the one in use, `previous` the
one before it. An alias can move between two reads, so a job resolves it once and works with the
version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from cluster.errors import UsageError, instead_of, joined, listed
from cluster.tracking.client import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
DIGEST_TAG = "package_sha256"
SEEN_TAG = "images_seen"


class Version(NamedTuple):
    """One registered model version; `str()` is the URI that always names it."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"


def find_package(digest: str, name: str, *, tracking: str) -> Version | None:
    """The newest version of `name` with the package of this digest, so that a repeated command does
    not register it again.
    """
    with connected(tracking) as client:
        numbers = [
            int(each.version)
            for each in client.search_model_versions(f"name='{name}'")
            if each.tags.get(DIGEST_TAG) == digest
        ]
    return Version(name, max(numbers)) if numbers else None


def aliases(version: Version, *, tracking: str) -> list[str]:
    with connected(tracking) as client:
        numbers = client.get_registered_model(version.name).aliases
    return sorted(alias for alias, number in numbers.items() if int(number) == version.version)


def source_of(version: Version, *, tracking: str) -> tuple[str, int] | None:
    """The id of the MLflow run that a version comes from, and the images that its checkpoint has
    seen, 0 where that is not known. None where no run is known.
    """
    with connected(tracking) as client:
        stored = client.get_model_version(version.name, str(version.version))
    if not stored.run_id:
        return None
    return stored.run_id, int(stored.tags.get(SEEN_TAG, 0))


def aliases_by_version(aliases: Mapping[str, str]) -> dict[int, list[str]]:
    """The aliases of a registered model, by version."""
    found: dict[int, list[str]] = {}
    for alias, number in sorted(aliases.items()):
        found.setdefault(int(number), []).append(alias)
    return found


def refuse_unknown(client: MlflowClient, name: str, tracking: str) -> None:
    """`UsageError` when the registry has no such model."""
    _aliases_of(client, name, name, tracking)


def parse_model_uri(uri: str) -> tuple[str, str | None, str]:
    """(name, alias, number), of which the alias or the number is given. `UsageError` for another
    form.
    """
    parts = re.fullmatch(r"models:/([^/@:]+)(?:@([^/@]+)|/(\d+))", uri)
    if parts is None:
        raise UsageError(f"{uri}: a registered model is models:/NAME@champion or models:/NAME/3")
    return parts[1], parts[2], parts[3]


def resolve(model_uri: str, *, tracking: str) -> Version:
    """`models:/NAME@alias` or `models:/NAME/3` -> the version. `UsageError` for an unknown name,
    alias or version lists the known ones.
    """
    name, alias, number = parse_model_uri(model_uri)
    with connected(tracking) as client:
        numbers = _aliases_of(client, name, model_uri, tracking)
        if alias is not None:
            if alias not in numbers:
                raise UsageError(
                    joined(
                        f"{model_uri}: {name} has no alias {alias!r}",
                        instead_of(alias, sorted(numbers)),
                    )
                )
            return Version(name, int(numbers[alias]))
        versions = sorted(
            (int(each.version) for each in client.search_model_versions(f"name='{name}'")),
            reverse=True,
        )
    if int(number) not in versions:
        raise UsageError(
            f"{model_uri}: {name} has no version {number}; there are"
            f" {listed([str(one) for one in versions])}"
        )
    return Version(name, int(number))


def _aliases_of(
    client: MlflowClient, name: str, model_uri: str, tracking: str
) -> Mapping[str, str]:
    """Alias -> version number. `UsageError` when the registry has no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in client.search_registered_models(max_results=1000)]
        known = (
            instead_of(name, names)
            if names
            else "it is empty; pipelines/register.py registers a model"
        )
        raise UsageError(
            joined(f"{model_uri}: no model {name!r} in the registry at {tracking}", known)
        ) from error
