"""What changes the model registry: a version is registered, becomes the champion, or gives that
back to the one before.

Two at once would both win, for MLflow has no lock and no conditional write. So whoever moves the
champion first writes the tag `promoting` of the registered model, if there is none, waits until a
slower one would have written it too, and looks whether it is still its own (Fischer's mutual
exclusion; Lamport, A Fast Mutual Exclusion Algorithm, ACM TOCS 1987, section 2).
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cluster.errors import UsageError
from cluster.tracking.client import connected
from cluster.tracking.history import (
    TIME_FORMAT,
    Kind,
    Move,
    before_champion,
    history,
    shown_time,
    write_move,
)
from cluster.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, Version, resolve

if TYPE_CHECKING:
    from mlflow import MlflowClient

# From this tag the UI links a run's model to its versions.
_LINK_TAG = "mlflow.modelVersions"
LOCK_TAG = "promoting"
SETTLE_S = 1.0
"""In which two writers of the lock that began together have both written it."""
SILENT_S = 30.0
"""A lock that is not given back for so long is that of a dead process: a move takes seconds."""


@dataclass(frozen=True)
class Evidence:
    """What a promotion rests on."""

    champion: int | None
    """The version that the gate compared with; None: there was none."""
    data: str
    data_digest: str
    numbers: Mapping[str, float | None] = field(default_factory=dict)


def register(
    model_uri: str,
    name: str,
    *,
    tracking: str,
    tags: Mapping[str, object] | None = None,
    card: str | None = None,
) -> Version:
    """A new version of `name` (created when new) with the alias `challenger`; if there is no
    `champion` yet, it becomes that too. `card` is its description, in Markdown.
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
            name,
            source=model_uri,
            run_id=logged.source_run_id,
            model_id=model_id,
            tags=texts,
            description=card,
        )
        version = Version(name, int(created.version))
        linked = [*json.loads(logged.tags.get(_LINK_TAG, "[]")), version._asdict()]
        client.set_logged_model_tags(model_id, {_LINK_TAG: json.dumps(linked)})
    give_aliases(version, tracking=tracking)
    return version


def give_aliases(version: Version, *, tracking: str) -> None:
    """Make `version` the challenger if it is the newest one and, if there is no champion, that too.
    It does what is missing: a `register` may have been cut off before.
    """
    with connected(tracking) as client:
        aliases = client.get_registered_model(version.name).aliases
        stored = client.search_model_versions(f"name='{version.name}'")
        if version.version != max(int(each.version) for each in stored):
            return
        if int(aliases.get(CHALLENGER, 0)) != version.version:
            client.set_registered_model_alias(version.name, CHALLENGER, str(version.version))
    if CHAMPION not in aliases:
        reason = "the first version" if len(stored) == 1 else "there was no champion"
        promote(version, kind="first", reason=reason, tracking=tracking)


def promote(
    version: Version,
    *,
    reason: str,
    tracking: str,
    kind: Kind = "promotion",
    evidence: Evidence | None = None,
) -> Move | None:
    """Make `version` the champion and the old champion `previous`. None: it is the champion
    already. `UsageError` for an unknown version, and where the champion is no longer the one of the
    evidence, or another promotion is under way.
    """
    version = resolve(str(version), tracking=tracking)
    with connected(tracking) as client, _lock(client, version.name):
        champion = champion_of(client, version.name)
        if champion == version.version:
            return None
        if evidence is not None and champion != evidence.champion:
            raise UsageError(
                f"{version}: was compared with version {evidence.champion}, but"
                f" {_how_it_came(client, version.name, champion)}; run the command again, it"
                " compares with that one"
            )
        return _move(client, version, champion, kind=kind, reason=reason, evidence=evidence)


def roll_back(name: str, *, reason: str, tracking: str) -> Move:
    """Make the champion of before the champion again, as the history has it; the present one
    becomes `previous`. `UsageError` where there is none: a rollback that is typed twice goes back
    twice, and never forward.
    """
    resolve(f"models:/{name}@{CHAMPION}", tracking=tracking)
    with connected(tracking) as client, _lock(client, name):
        aliases = client.get_registered_model(name).aliases
        champion = int(aliases[CHAMPION])
        target = before_champion(history(client.get_registered_model(name).tags, champion))
        if target is None:
            raise UsageError(
                f"{name}: version {champion} cannot be rolled back, because the history has no"
                f" champion before it; promote --model models:/{name}/N chooses another version"
            )
        move = _move(client, Version(name, target), champion, kind="rollback", reason=reason)
    return move


def champion_of(client: MlflowClient, name: str) -> int | None:
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else int(number)


def _how_it_came(client: MlflowClient, name: str, champion: int | None) -> str:
    told = history(client.get_registered_model(name).tags, champion)
    if not told or champion is None:
        return f"the champion is now {'none' if champion is None else f'version {champion}'}"
    last = told[-1]
    when = "by hand" if last.kind == "by hand" else f"{shown_time(last.at)} by {last.by}"
    return f"the champion is now version {champion}, since {when}"


def _move(
    client: MlflowClient,
    version: Version,
    champion: int | None,
    *,
    kind: Kind,
    reason: str,
    evidence: Evidence | None = None,
) -> Move:
    now = datetime.now(UTC).strftime(TIME_FORMAT)
    move = Move(now, user(), kind, champion, version.version, reason, is_done=False)
    if evidence is not None:
        move = replace(
            move,
            data=evidence.data,
            data_digest=evidence.data_digest,
            numbers=evidence.numbers,
        )
    write_move(client, version.name, move)
    # `champion` moves last: a failure before that does not change the model in use, and the same
    # command does it again.
    if champion is not None:
        client.set_registered_model_alias(version.name, PREVIOUS, str(champion))
    client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    move = replace(move, is_done=True)
    write_move(client, version.name, move)
    return move


def user() -> str:
    """USER@HOST."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # containers run as numeric users without a name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


@contextmanager
def _lock(client: MlflowClient, name: str) -> Iterator[None]:
    """One at a time moves the champion of `name`. `UsageError` names another one that does."""
    from mlflow.exceptions import MlflowException

    token = json.dumps({"by": user(), "token": uuid.uuid4().hex})
    _wait_until_free(client, name)
    try:
        client.set_registered_model_tag(name, LOCK_TAG, token)
    except MlflowException:
        # Of two that write a new tag at once, a database may refuse the second.
        if _lock_of(client, name) is None:
            raise
    time.sleep(SETTLE_S)
    found = _lock_of(client, name)
    if found != token:
        by = json.loads(found)["by"] if found else "another command"
        raise UsageError(
            f"{name}: {by} is moving the champion at this moment; look at the history, then run"
            " the command again"
        )
    try:
        yield
    finally:
        client.delete_registered_model_tag(name, LOCK_TAG)


def _lock_of(client: MlflowClient, name: str) -> str | None:
    return client.get_registered_model(name).tags.get(LOCK_TAG)


def _wait_until_free(client: MlflowClient, name: str) -> None:
    """Until there is no lock, or the same one stays for `SILENT_S`: its process is dead."""
    seen, since = _lock_of(client, name), time.monotonic()
    while seen is not None and time.monotonic() < since + SILENT_S:
        time.sleep(SETTLE_S / 2)
        now = _lock_of(client, name)
        if now != seen:
            seen, since = now, time.monotonic()
