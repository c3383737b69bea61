"""JSON as `read_file` sees it: its shape, and the lines of it when written out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmpipe.errors import TalkError
from llmpipe.tools.document import Document, as_lines, decoded
from llmpipe.tools.fence import one_line

MOST_KEYS = 40
MOST_DEPTH = 6
LOOKED_AT = 200
"""How many entries of a list its shape is made of."""


def tree(data: bytes, name: str) -> Document:
    """Read JSON.

    Raises:
        TalkError: it is none.
    """
    content = decoded(data, name)
    try:
        value = json.loads(content)
        lines = as_lines(json.dumps(value, ensure_ascii=False, indent=1))
    except (ValueError, RecursionError) as error:
        raise TalkError(f"{name} is no JSON: {one_line(str(error), 200)}") from error
    about = [f"{name}: JSON, {len(content):,} characters, {len(lines):,} lines when written out", *told([value])]
    return Document("line", lines, "\n".join(about))


def told(values: Sequence[Any], depth: int = 0) -> list[str]:
    """Return the shape that some values share, as indented lines: `- name: text, such as Ada`."""
    pad = "  " * depth
    if depth >= MOST_DEPTH:
        return [f"{pad}- …"]
    if all(isinstance(value, dict) for value in values):
        keys = list(dict.fromkeys(key for value in values for key in value))
        lines = [line for key in keys[:MOST_KEYS] for line in _entry(key, values, depth)]
        return [*lines, f"{pad}- and {len(keys) - MOST_KEYS} more keys"] if len(keys) > MOST_KEYS else lines
    if all(isinstance(value, list) for value in values):
        inner = [entry for value in values for entry in value[:LOOKED_AT]][:LOOKED_AT]
        lengths = sorted({len(value) for value in values})
        count = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
        return [f"{pad}- a list of {count}, each {_kind(inner)}", *(_inside(inner, depth + 1))]
    return [f"{pad}- {_kind(values)}"]


def _entry(key: str, values: Sequence[dict[str, Any]], depth: int) -> list[str]:
    there = [value[key] for value in values if key in value]
    missing = f"; in {len(there):,} of {len(values):,}" if len(there) < len(values) else ""
    line = f"{'  ' * depth}- {one_line(key, 60)}: {_kind(there)}{missing}"
    return [line, *_inside(there, depth + 1)]


def _inside(values: Sequence[Any], depth: int) -> list[str]:
    """Return the shape of what has one inside."""
    kinds = {type(value) for value in values}
    return told(values, depth) if kinds in ({dict}, {list}) else []


def _kind(values: Sequence[Any]) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    kinds = list(dict.fromkeys(names.get(type(value), "a number") for value in values))
    if not kinds:
        return "nothing"
    simple = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if kinds == ["a number"]:
        return f"a number, {simple[0]}" if len(simple) == 1 else f"numbers, {min(simple)} to {max(simple)}"
    if kinds == ["text"]:
        return f"text, such as {one_line(values[0], 60)}" if values[0] else "text"
    return " or ".join(kinds)
