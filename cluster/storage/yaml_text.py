"""YAML in which nothing is lost: a key that stands twice in one mapping is an error."""

from __future__ import annotations

from typing import Any

import yaml


class _OnceEach:
    """Mixed into a loader of PyYAML, which lets the last of several equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} stands twice; keep one of them",
                        problem_mark=key.start_mark,
                    )
                seen.add((key.tag, key.value))
        # The class beside this one in the loader has it.
        return super().construct_mapping(node, deep=deep)  # pyright: ignore


class _Loader(_OnceEach, yaml.SafeLoader):
    pass


class _TextLoader(_OnceEach, yaml.BaseLoader):
    pass


def parse(text: str, *, all_text: bool = False) -> Any:
    """The content of a YAML document; None for an empty one.

    With `all_text` every key and value is the text that stands there: `no` and `02146`, which YAML
    takes for a truth value and a number. Raises `yaml.YAMLError`.
    """
    return yaml.load(text, Loader=_TextLoader if all_text else _Loader)
