"""Versions and aliases in the model registry, against a real SQLite store."""

from __future__ import annotations

import json

import pytest

from cluster.errors import UsageError
from cluster.tracking.client import connect
from cluster.tracking.registry import (
    DIGEST_TAG,
    Version,
    aliases,
    find_package,
    promote,
    register,
    resolve,
)


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


def test_an_unknown_name_alias_or_version_lists_the_known_ones(tracking, logged):
    version = register(logged[0], "known", tracking=tracking)
    assert resolve("models:/known/1", tracking=tracking) == version
    for uri, said in (
        ("models:/unknown@champion", "no model 'unknown' .*there are .*known"),
        ("models:/known@best", "no alias 'best'; there are challenger, champion"),
        ("models:/known/4", "no version 4; there are 1"),
        ("models:/known", "models:/NAME@champion or models:/NAME/3"),
        ("runs:/known/1", "models:/NAME@champion or models:/NAME/3"),
    ):
        with pytest.raises(UsageError, match=said):
            resolve(uri, tracking=tracking)
    with pytest.raises(UsageError, match="no version 9"):
        promote(Version("known", 9), reason="a typing error", tracking=tracking)
