"""A YAML reader with the core schema of YAML 1.2 that refuses duplicate keys, anchors and tags.

PyYAML follows YAML 1.1, where `1e-3` is text, `off` is false, `010` is 8 and `1:30` is 90.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from sleep_rl.contracts.errors import InputError


def parse(text: str, where: str) -> Any:
    """Return the plain data of one YAML document, None if it is empty.

    Raises InputError: one line that begins with `where` and names the line of the text.
    """
    try:
        # _Loader is a SafeLoader with fewer constructors
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = f"line {mark.line + 1}: " if mark else ""
    except ValueError as error:  # an integer of thousands of digits
        problem = str(error)
        line = ""
    raise InputError(" ".join(f"{where}: {line}not valid YAML: {problem}".split()))


DEEPEST = 32  # nested lists and mappings


class _Loader(yaml.SafeLoader):
    depth = 0  # of the current node
    yaml_implicit_resolvers: ClassVar[dict] = {}  # none of YAML 1.1; those of 1.2 are added below
    yaml_constructors: ClassVar[dict] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse anchors, tags and deep nesting. Called by PyYAML."""
        event = self.peek_event()
        if getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not supported", problem_mark=event.start_mark
            )
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(
                problem="tags are not supported", problem_mark=event.start_mark
            )
        self.depth += 1
        # Python's recursion limit would be reached only after seconds and gigabytes
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def mapping(self, node: yaml.MappingNode) -> dict:
        """Return a mapping as a dict; refuse keys that are not text, and duplicate keys, of which
        PyYAML would use the last one.
        """
        out: dict = {}
        for key_node, value_node in node.value:
            key = (
                self.construct_object(key_node, deep=True)
                if isinstance(key_node, yaml.ScalarNode)
                else None
            )
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem="keys must be text", problem_mark=key_node.start_mark
                )
            if key in out:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key}", problem_mark=key_node.start_mark
                )
            out[key] = self.construct_object(value_node, deep=True)
        return out

    def sequence(self, node: yaml.SequenceNode) -> list:
        """Return a sequence as a list."""
        return self.construct_sequence(node, deep=True)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _name = f"tag:yaml.org,2002:{_tag}"
    _Loader.add_implicit_resolver(_name, re.compile(f"^(?:{_pattern})$"), _first)
    _Loader.add_constructor(_name, getattr(yaml.SafeLoader, f"construct_yaml_{_tag}"))
_Loader.add_constructor("tag:yaml.org,2002:str", yaml.SafeLoader.construct_yaml_str)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.sequence)
