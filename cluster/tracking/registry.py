"""The MLflow model registry: register, promote and look up versions.

Aliases, not stages: `challenger` is the newest version, `champion` the one in use, `previous` the
one before it. An alias can move between two reads, so a job resolves it once and works with the
version.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from cluster.errors import UsageError
from cluster.tracking.client import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
DIGEST_TAG = "package_sha256"
# From this tag the UI links a run's model to its versions.
_LINK_TAG = "mlflow.modelVersions"


class Version(NamedTuple):
    """One registered model version; `str()` is the URI that always names it."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"


def find_package(digest: str, name: str, *, tracking: str) -> Version | None:
    """The version of `name` with the package of this digest, so that a repeated command does not
    register it again.
    """
    with connected(tracking) as client:
        for each in client.search_model_versions(f"name='{name}'"):
            if each.tags.get(DIGEST_TAG) == digest:
                return Version(name, int(each.version))
    return None


def register(
    model_uri: str, name: str, *, tracking: str, tags: Mapping[str, object] | None = None
) -> Version:
    """A new version of `name` (created when new) with the alias `challenger`; if there is no
    `champion` yet, it becomes that too.
    """
    from mlflow.exceptions import MlflowException

    with connected(tracking) as client:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model_id = model_uri.removeprefix("models:/")
        logged = client.get_logged_model(model_id)
        texts = {key: str(value) for key, value in (tags or {}).items()}
        created = client.create_model_version(
            name, source=model_uri, run_id=logged.source_run_id, model_id=model_id, tags=texts
        )
        version = Version(name, int(created.version))
        linked = [*json.loads(logged.tags.get(_LINK_TAG, "[]")), version._asdict()]
        client.set_logged_model_tags(model_id, {_LINK_TAG: json.dumps(linked)})
        client.set_registered_model_alias(name, CHALLENGER, str(version.version))
        first = CHAMPION not in client.get_registered_model(name).aliases
    if first:
        promote(version, reason="the first version", tracking=tracking)
    return version


def promote(version: Version, *, reason: str, tracking: str) -> None:
    """Make `version` the champion and the old champion `previous`; to roll back, promote
    `previous`.

    MLflow keeps no history of aliases: every move is a tag `promotion.<UTC time>` of the registered
    model. `UsageError` for an unknown version.
    """
    version = resolve(str(version), tracking=tracking)
    with connected(tracking) as client:
        number = str(version.version)
        old = client.get_registered_model(version.name).aliases.get(CHAMPION)
        if old is not None and str(old) == number:
            return
        # `champion` moves last: a failure before that does not change the model in use.
        if old is not None:
            client.set_registered_model_alias(version.name, PREVIOUS, str(old))
        audit = json.dumps(
            {"from": old and int(old), "to": version.version, "reason": reason, "by": _user()}
        )
        client.set_registered_model_tag(
            version.name, f"promotion.{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}", audit
        )
        client.set_registered_model_alias(version.name, CHAMPION, number)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run as numeric users without a name
        return str(os.getuid())


def aliases(version: Version, *, tracking: str) -> list[str]:
    with connected(tracking) as client:
        numbers = client.get_registered_model(version.name).aliases
    return sorted(alias for alias, number in numbers.items() if int(number) == version.version)


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
                    f"{model_uri}: {name} has no alias {alias!r}; there are"
                    f" {', '.join(sorted(numbers)) or 'none'}"
                )
            return Version(name, int(numbers[alias]))
        versions = sorted(
            int(each.version) for each in client.search_model_versions(f"name='{name}'")
        )
    if int(number) not in versions:
        raise UsageError(
            f"{model_uri}: {name} has no version {number}; there are"
            f" {', '.join(map(str, versions)) or 'none'}"
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
        names = [model.name for model in client.search_registered_models(max_results=20)]
        known = (
            f"there are {', '.join(names)}"
            if names
            else "it is empty; pipelines/register.py registers a model"
        )
        raise UsageError(
            f"{model_uri}: no model {name!r} in the registry at {tracking}; {known}"
        ) from error
