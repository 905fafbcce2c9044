"""YAML in which nothing is lost and nothing grows: a key that stands twice in one mapping is an
error, and so is a text that its own aliases multiply.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Of a document, where each alias counts as what it stands for: 9 lines of 9 aliases each stand for
387 million values.
"""
MAX_DEPTH = 50


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
    def whole(self, node: yaml.ScalarNode) -> int:
        """`59:59` is a number too, and a long one has more digits than Python prints."""
        if len(node.value) > _LONGEST:
            raise yaml.constructor.ConstructorError(
                problem=f"a number of {len(node.value)} characters", problem_mark=node.start_mark
            )
        return self.construct_yaml_int(node)


_LONGEST = 40
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)


class _TextLoader(_OnceEach, yaml.BaseLoader):
    pass


def parse(text: str, *, all_text: bool = False) -> Any:
    """The content of a YAML document; None for an empty one.

    With `all_text` every key and value is the text that stands there: `no` and `02146`, which YAML
    takes for a truth value and a number. Raises `yaml.YAMLError`, also for more than `MAX_VALUES`
    or `MAX_DEPTH` and for numbers that Python does not read.
    """
    loader = (_TextLoader if all_text else _Loader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _values(node, {}, MAX_DEPTH)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(_TOO_DEEP) from None
    except (ArithmeticError, ValueError) as error:
        # A number of 5,000 digits, the 30th of February.
        raise yaml.YAMLError(str(error)[:100]) from error
    finally:
        loader.dispose()


_TOO_DEEP = f"more than {MAX_DEPTH} mappings or lists in each other"


def _values(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node stands for. `known` has them by the id of a node."""
    if depth < 0:
        # Also where a node is in itself.
        raise yaml.YAMLError(_TOO_DEEP)
    if id(node) not in known:
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        nodes = [each for one in inner for each in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_values(each, known, depth - 1) for each in nodes)
    if known[id(node)] > MAX_VALUES:
        raise yaml.YAMLError(
            f"more than {MAX_VALUES} values, each alias counted as what it stands for"
        )
    return known[id(node)]
