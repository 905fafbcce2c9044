"""The base of every configuration section: frozen, closed against unknown names, checked when made.
The sections are in `model_config`, `image_config` and `training_config`. Only entry points read a
configuration; functions take plain arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a configuration. It is immutable and refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refuse_unused(
    section: Section, where: str, names: Sequence[str], reason: str, remedy: str = ""
) -> None:
    """`ValueError` for a field among `names` that differs from its default although it does
    nothing. `where` is the section's name; `remedy` says how to give the field an effect.
    """
    for name in names:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
            raise ValueError(
                f"{where}.{name} {shown(value)}: does nothing {reason}; leave it at"
                f" {shown(default)}{remedy and f', or {remedy}'}"
            )


def shown(value: Any) -> str:
    """The value as it is typed on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    if value is None:
        return "null"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
