"""The aliases of versions and their history, against a real SQLite store."""

from __future__ import annotations

import json
import threading

import pytest

from cluster.errors import PlainError, UsageError
from cluster.tracking import promotion
from cluster.tracking.audit import read_audit
from cluster.tracking.client import connect, connected
from cluster.tracking.history import history
from cluster.tracking.promotion import (
    Evidence,
    champion_of,
    give_aliases,
    promote,
    register,
    roll_back,
)
from cluster.tracking.registry import DIGEST_TAG, Version, aliases, find_package, resolve


@pytest.fixture(autouse=True)
def _settles_soon(monkeypatch):
    monkeypatch.setattr(promotion, "SETTLE_S", 0.2)


def told(tracking, name):
    """Of the history: from, to, kind."""
    client = connect(tracking)
    tags = client.get_registered_model(name).tags
    moves = history(tags, champion_of(client, name))
    return [(move.old, move.new, move.kind) for move in moves]


def test_promotion_moves_the_aliases_and_can_be_rolled_back(tracking, logged):
    one = register(logged[0], "cells", tracking=tracking, tags={"AP": 0.5, DIGEST_TAG: "aaa"})
    assert one == Version("cells", 1) and aliases(one, tracking=tracking) == [
        "challenger",
        "champion",
    ]
    two = register(logged[0], "cells", tracking=tracking, tags={DIGEST_TAG: "bbb"})
    assert aliases(one, tracking=tracking) == ["champion"] and aliases(two, tracking=tracking) == [
        "challenger"
    ]
    client = connect(tracking)
    stored = client.get_model_version("cells", "1")
    assert stored.tags["AP"] == "0.5" and stored.run_id == logged[1] and stored.source == logged[0]
    linked = json.loads(
        client.get_logged_model(logged[0].removeprefix("models:/")).tags["mlflow.modelVersions"]
    )
    assert {"name": "cells", "version": 1} in linked and {"name": "cells", "version": 2} in linked
    assert (
        find_package("bbb", "cells", tracking=tracking) == two
        and find_package("ccc", "cells", tracking=tracking) is None
    )

    promote(two, reason="AP 0.6 against 0.5", tracking=tracking)
    assert (
        resolve("models:/cells@champion", tracking=tracking) == two
        and resolve("models:/cells@previous", tracking=tracking) == one
    )
    promote(two, reason="again", tracking=tracking)
    assert resolve("models:/cells@previous", tracking=tracking) == one
    promote(
        resolve("models:/cells@previous", tracking=tracking), reason="roll back", tracking=tracking
    )
    assert (
        resolve("models:/cells@champion", tracking=tracking) == one
        and resolve("models:/cells@previous", tracking=tracking) == two
    )
    tags = client.get_registered_model("cells").tags
    audit = [json.loads(tags[key]) for key in sorted(tags) if key.startswith("promotion.")]
    assert [(entry["from"], entry["to"], entry["reason"]) for entry in audit] == [
        (None, 1, "the first version"),
        (1, 2, "AP 0.6 against 0.5"),
        (2, 1, "roll back"),
    ]


def two_versions(logged, tracking, name):
    return [register(logged[0], name, tracking=tracking) for _ in range(2)]


def test_a_champion_is_given_back(logged, tracking):
    one, two = two_versions(logged, tracking, "back")
    with pytest.raises(UsageError, match="back: version 1 cannot be rolled back"):
        roll_back("back", reason="a mistake", tracking=tracking)
    promote(two, reason="better", tracking=tracking)
    assert roll_back("back", reason="a mistake", tracking=tracking).new == 1
    assert resolve("models:/back@champion", tracking=tracking) == one
    assert resolve("models:/back@previous", tracking=tracking) == two
    assert told(tracking, "back") == [(None, 1, "first"), (1, 2, "promotion"), (2, 1, "rollback")]
    # Typed again it does not bring back what was rolled back.
    with pytest.raises(UsageError, match="back: version 1 cannot be rolled back"):
        roll_back("back", reason="a mistake", tracking=tracking)
    three = register(logged[0], "back", tracking=tracking)
    promote(three, reason="better", tracking=tracking)
    connect(tracking).set_registered_model_alias("back", "champion", "2")
    # Of 1, 3 and, by hand, 2.
    assert [roll_back("back", reason="no", tracking=tracking).new for _ in range(2)] == [3, 1]
    with pytest.raises(UsageError, match="no model 'nothing'"):
        roll_back("nothing", reason="a mistake", tracking=tracking)


def test_a_move_by_hand_to_an_earlier_champion_takes_back_what_came_after_it(logged, tracking):
    _, two = two_versions(logged, tracking, "by-hand")
    promote(two, reason="better", tracking=tracking)
    connect(tracking).set_registered_model_alias("by-hand", "champion", "1")
    with pytest.raises(UsageError, match="by-hand: version 1 cannot be rolled back"):
        roll_back("by-hand", reason="a mistake", tracking=tracking)


def test_an_older_version_gets_no_alias_when_it_is_registered_again(logged, tracking):
    one, two = two_versions(logged, tracking, "repeated")
    client = connect(tracking)
    client.delete_registered_model_alias("repeated", "champion")
    give_aliases(one, tracking=tracking)
    assert aliases(one, tracking=tracking) == []
    give_aliases(two, tracking=tracking)
    assert aliases(two, tracking=tracking) == ["challenger", "champion"]


def test_a_champion_that_moved_after_the_comparison_ends_the_promotion(logged, tracking):
    _, two = two_versions(logged, tracking, "moved")
    three = register(logged[0], "moved", tracking=tracking)
    compared = Evidence(1, "/data", "abc", {"AP": 0.5})
    promote(two, reason="better", tracking=tracking, evidence=compared)
    with pytest.raises(UsageError, match=r"version 1, but the champion is now version 2, since 20"):
        promote(three, reason="better too", tracking=tracking, evidence=compared)
    assert resolve("models:/moved@champion", tracking=tracking) == two


def test_a_move_by_hand_is_named(logged, tracking):
    _, two = two_versions(logged, tracking, "hand")
    client = connect(tracking)
    client.set_registered_model_alias("hand", "champion", "2")
    assert told(tracking, "hand") == [(None, 1, "first"), (1, 2, "by hand")]
    three = register(logged[0], "hand", tracking=tracking)
    with pytest.raises(UsageError, match="the champion is now version 2, since by hand"):
        promote(three, reason="better", tracking=tracking, evidence=Evidence(1, "/data", "abc"))
    promote(three, reason="better", tracking=tracking, evidence=Evidence(2, "/data", "abc"))
    assert told(tracking, "hand") == [
        (None, 1, "first"),
        (1, 2, "by hand"),
        (2, 3, "promotion"),
    ]
    assert resolve("models:/hand@previous", tracking=tracking) == two


def test_a_champion_that_is_deleted_by_hand_is_named(logged, tracking):
    _, two = two_versions(logged, tracking, "deleted")
    promote(two, reason="better", tracking=tracking)
    connect(tracking).delete_registered_model_alias("deleted", "champion")
    gone = [(None, 1, "first"), (1, 2, "promotion"), (2, None, "by hand")]
    assert told(tracking, "deleted") == gone
    said = read_audit("deleted", tracking=tracking).history_lines()
    assert said[-2].endswith("by hand: 2 -> none") and "was deleted" in said[-1]
    promote(two, reason="again", tracking=tracking)
    assert told(tracking, "deleted") == [*gone, (None, 2, "promotion")]
    # Not to itself, which was the champion before the alias was deleted.
    assert roll_back("deleted", reason="no", tracking=tracking).new == 1


def test_a_champion_of_a_model_without_a_history_is_one_by_hand(logged, tracking):
    two_versions(logged, tracking, "bare")
    client = connect(tracking)
    for key in client.get_registered_model("bare").tags:
        client.delete_registered_model_tag("bare", key)
    assert told(tracking, "bare") == [(None, 1, "by hand")]


def test_other_aliases_that_move_by_hand_are_named(logged, tracking):
    tags = {DIGEST_TAG: "abc"}
    for _ in range(2):
        register(logged[0], "strays", tracking=tracking, tags=tags)
    promote(Version("strays", 2), reason="better", tracking=tracking)

    def strays():
        return list(read_audit("strays", tracking=tracking).strays)

    client = connect(tracking)
    assert strays() == []
    client.set_registered_model_alias("strays", "previous", "2")
    client.set_registered_model_alias("strays", "challenger", "1")
    assert strays() == [
        "previous was moved to version 2 by hand; it was version 1",
        "challenger was moved to version 1 by hand; it was version 2",
    ]
    for alias in ("previous", "challenger"):
        client.delete_registered_model_alias("strays", alias)
    assert strays() == [
        "previous or its version was deleted by hand; it was version 1",
        "challenger or its version was deleted by hand; it was version 2",
    ]


@pytest.mark.parametrize("alias", ["previous", "champion"])
def test_a_registry_that_dies_between_the_moves_leaves_the_champion_and_the_command_works_again(
    logged, tracking, monkeypatch, alias
):
    from mlflow import MlflowClient

    name = f"dies-at-{alias}"
    one, two = two_versions(logged, tracking, name)
    whole = MlflowClient.set_registered_model_alias

    def dies(self, of, moved, number):
        if moved == alias:
            raise OSError("the server is gone")
        whole(self, of, moved, number)

    with monkeypatch.context() as patch, pytest.raises(PlainError, match="the server is gone"):
        patch.setattr(MlflowClient, "set_registered_model_alias", dies)
        promote(two, reason="better", tracking=tracking)
    assert resolve(f"models:/{name}@champion", tracking=tracking) == one
    assert told(tracking, name) == [(None, 1, "first")]
    with pytest.raises(UsageError, match="cannot be rolled back"):
        roll_back(name, reason="what was cut off", tracking=tracking)
    promote(two, reason="better", tracking=tracking)
    assert resolve(f"models:/{name}@champion", tracking=tracking) == two
    assert resolve(f"models:/{name}@previous", tracking=tracking) == one
    assert told(tracking, name) == [(None, 1, "first"), (1, 2, "promotion")]


def test_a_move_that_was_cut_off_after_the_alias_counts(logged, tracking, monkeypatch):
    _, two = two_versions(logged, tracking, "late")
    calls = []

    def once(client, name, move):
        calls.append(move)
        if len(calls) == 2:
            raise OSError("the server is gone")
        write(client, name, move)

    write = promotion.write_move
    monkeypatch.setattr(promotion, "write_move", once)
    with pytest.raises(PlainError, match="the server is gone"):
        promote(two, reason="better", tracking=tracking)
    assert told(tracking, "late") == [(None, 1, "first"), (1, 2, "promotion")]


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(logged, tracking):
    two_versions(logged, tracking, "race")
    register(logged[0], "race", tracking=tracking)
    compared, said = Evidence(1, "/data", "abc"), []
    begin = threading.Barrier(2)

    def run(number):
        begin.wait()
        try:
            promote(Version("race", number), reason="x", tracking=tracking, evidence=compared)
        except UsageError as error:
            said.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in (2, 3)]
    # In one process both set MLflow's URI, and each gives back what it found.
    with connected(tracking):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(said) == 1 and ("at this moment" in said[0] or "is now version" in said[0]), said
    assert len(told(tracking, "race")) == 2
    assert promotion.LOCK_TAG not in connect(tracking).get_registered_model("race").tags


def test_a_database_that_refuses_the_second_lock_of_one_moment_tells_the_loser(
    logged, tracking, monkeypatch
):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    _, two = two_versions(logged, tracking, "moment")
    write = MlflowClient.set_registered_model_tag

    def refuse(self, name, key, value):
        if key == promotion.LOCK_TAG:
            write(self, name, key, json.dumps({"by": "ann@there", "token": "1"}))
            raise MlflowException("UNIQUE constraint failed")
        write(self, name, key, value)

    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", refuse)
    with pytest.raises(UsageError, match="ann@there is moving the champion at this moment"):
        promote(two, reason="better", tracking=tracking)
    assert champion_of(connect(tracking), "moment") == 1


def test_the_lock_of_a_dead_command_is_taken_over(logged, tracking, monkeypatch):
    monkeypatch.setattr(promotion, "SILENT_S", 0.5)
    _, two = two_versions(logged, tracking, "stale")
    lock = json.dumps({"by": "ann@gone", "token": "1"})
    connect(tracking).set_registered_model_tag("stale", promotion.LOCK_TAG, lock)
    promote(two, reason="better", tracking=tracking)
    assert resolve("models:/stale@champion", tracking=tracking) == two


def test_moves_that_an_earlier_version_wrote_are_read(logged, tracking):
    register(logged[0], "old", tracking=tracking)
    client = connect(tracking)
    for key in client.get_registered_model("old").tags:
        client.delete_registered_model_tag("old", key)
    for second, move in enumerate([{"from": None, "to": 2}, {"from": 2, "to": 1}]):
        entry = json.dumps({**move, "reason": "why", "by": "ann"})
        client.set_registered_model_tag("old", f"promotion.20260101T00000{second}.0Z", entry)
    assert told(tracking, "old") == [(None, 2, "first"), (2, 1, "promotion")]
