"""Versions and aliases in the model registry, against a real SQLite store."""

from __future__ import annotations

import pytest

from cluster.errors import UsageError
from cluster.tracking.promotion import promote, register
from cluster.tracking.registry import Version, resolve


def test_an_unknown_name_alias_or_version_lists_the_known_ones(tracking, logged):
    version = register(logged[0], "known", tracking=tracking)
    assert resolve("models:/known/1", tracking=tracking) == version
    for uri, said in (
        ("models:/unknown@champion", "no model 'unknown' .*there are .*known"),
        ("models:/known@best", "no alias 'best'; there are challenger, champion"),
        ("models:/knowm@champion", r"no model 'knowm' .*; did you mean known\? there are .*known"),
        ("models:/known@Champoin", r"; did you mean champion\? there are challenger, champion"),
        ("models:/known/4", "no version 4; there are 1"),
        ("models:/known", "models:/NAME@champion or models:/NAME/3"),
        ("runs:/known/1", "models:/NAME@champion or models:/NAME/3"),
    ):
        with pytest.raises(UsageError, match=said):
            resolve(uri, tracking=tracking)
    with pytest.raises(UsageError, match="no version 9"):
        promote(Version("known", 9), reason="a typing error", tracking=tracking)
