"""The fields of the training configuration that a sweep may vary, by their dotted names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cluster.errors import UsageError
from cluster.runs.config import TrainConfig
from cluster.runs.training_config import EXECUTION
from detector import config as settings


def _leaves(section: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _leaves(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


FIELDS = _leaves(TrainConfig)
"""Every field that holds a value, such as `loss.gamma`."""

_OWN = "each trial has its own"
_SAME_DATA = "all trials have the same data, else their AP cannot be compared"
_SAME_START = "all trials start from the same weights"
_STOPPED = "a sweep stops bad trials itself"
NOT_SEARCHED = {
    "name": _OWN,
    "storage": _OWN,
    "data.train": _SAME_DATA,
    "data.val": _SAME_DATA,
    "pretrained": _SAME_START,
    "from_checkpoint": _SAME_START,
    "from_state": _SAME_START,
    "training.epochs": "sweep.epochs is the length of every trial",
    "training.evaluate_every": "sweep.grace_epochs says when trials are evaluated",
    "training.patience": _STOPPED,
    "training.min_improvement": _STOPPED,
    "training.resized_batch": "the number of workers of a trial never changes",
    "training.seed": "a better AP with another seed is chance",
    **{
        f"training.{name}": "it changes how a training is executed and not its result"
        for name in sorted(EXECUTION)
    },
}
"""The fields that a sweep does not vary, with the reason."""


def check(name: str, where: str) -> None:
    """`UsageError`, which begins with `where`, unless a sweep may vary the field `name`."""
    if name in NOT_SEARCHED:
        raise UsageError(f"{where}: {name} is not searched, because {NOT_SEARCHED[name]}")
    if name not in FIELDS:
        raise UsageError(f"{where}: {name or 'an empty name'} {_what_instead(name)}")


def _what_instead(name: str) -> str:
    searched = [field for field in FIELDS if field not in NOT_SEARCHED]
    inside = [field for field in searched if field.startswith(name + ".")]
    if name and inside:
        return f"is a section; name one of its fields, such as {inside[0]}"
    # `learning_rate` is near optimizer.learning_rate only when the section is left out.
    own = name.rpartition(".")[2]
    last = {field.rpartition(".")[2]: field for field in searched}
    close = [last[one] for one in difflib.get_close_matches(own, last, n=2, cutoff=0.7)]
    close = [*dict.fromkeys([*difflib.get_close_matches(name, searched, n=2), *close])]
    meant = f"did you mean {' or '.join(close[:3])}?" if close else "train --help lists them"
    return f"is no setting of a training; {meant}"


def is_integer(name: str) -> bool:
    return int in _kinds(name)


def is_number(name: str) -> bool:
    """Whether the field takes any number within bounds, so that a range makes sense."""
    return bool({int, float} & set(_kinds(name)))


def _kinds(name: str) -> Sequence[Any]:
    """The type of a field; for an optional one also NoneType."""
    kind = FIELDS[name].annotation
    return get_args(kind) if type(None) in get_args(kind) else (kind,)


def choices(name: str) -> str:
    """Values of the field as an entry would list them; one that is configured if the field takes
    any value.
    """
    named = [str(one) for one in get_args(FIELDS[name].annotation) if isinstance(one, str | int)]
    return f"[{', '.join(named[:3])}]" if named else "[a, b]"


def typed(name: str, value: Any, where: str) -> Any:
    """The value as JSON that the field has after its own checks: text becomes a number, a tuple a
    list. `UsageError` with the field's own rule.
    """
    adapter = _adapter(name)
    try:
        return adapter.dump_python(adapter.validate_python(value), mode="json")
    except ValidationError as error:
        raise UsageError(f"{where}: {reason(error, name)}") from error


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = FIELDS[name]
    # The description is there because a type without any rule cannot be annotated with nothing.
    kind: Any = Annotated[(field.annotation, field.description, *field.metadata)]
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def values_of(config: TrainConfig) -> dict[str, Any]:
    """The configured value of every field, as JSON."""
    dumped = config.model_dump(mode="json")
    values: dict[str, Any] = {}
    for name in FIELDS:
        value: Any = dumped
        for part in name.split("."):
            value = value[part]
        values[name] = value
    return values


def reason(error: ValidationError, name: str = "") -> str:
    """Why a configuration, or the value of the field `name`, is refused: the first complaint."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "value_error":
        return message
    name = name or ".".join(str(part) for part in first["loc"])
    given = first["input"]
    meaning = FIELDS[name].description if name in FIELDS else ""
    return f"{name} {shown(given)}: {message[0].lower()}{message[1:]}{meaning and f' ({meaning})'}"


def shown(value: Any) -> str:
    """A JSON value as it is typed on the command line."""
    if isinstance(value, list):
        return ",".join(map(shown, value))
    return settings.shown(value)
