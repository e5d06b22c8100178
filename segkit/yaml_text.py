"""YAML by the 1.2 core rules, with the line of each key."""

from __future__ import annotations

import re
from typing import Any

import yaml

Lines = dict[tuple[Any, ...], int]


def parse_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """Values by the YAML 1.2 core rules, and the line of each key."""
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
        lines: Lines = {}
        if node is not None:
            _collect_lines(node, (), lines, source)
        return yaml.load(text, Loader=_CoreLoader), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark is not None else source
        raise ValueError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}.") from None


class _CoreLoader(yaml.SafeLoader):
    """YAML 1.2 core schema: only true/false are booleans, `1e-3` is a number, `010` is ten."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _CoreLoader.construct_yaml_int)
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


class CoreDumper(yaml.SafeDumper):
    """Quotes what `_CoreLoader` would read as another type."""

    yaml_implicit_resolvers = _CoreLoader.yaml_implicit_resolvers

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.Node:
        return super().represent_sequence(tag, sequence, flow_style=True)


def _collect_lines(node: yaml.Node, key: tuple[Any, ...], lines: Lines, source: str) -> None:
    lines[key] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise ValueError(
                    f"{source}, line {name.start_mark.line + 1}: a key is a list or a map, expected a word."
                )
            if name.value in seen:
                raise ValueError(f"{source}, line {name.start_mark.line + 1}: the key `{name.value}` is given twice.")
            seen.add(name.value)
            _collect_lines(value, (*key, name.value), lines, source)
            lines[(*key, name.value)] = name.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*key, index), lines, source)
