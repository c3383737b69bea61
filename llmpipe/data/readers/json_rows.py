"""JSON: an object on each line, or a list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from io import BufferedReader

from llmpipe.data import TOO_DEEP, BadRow, Row, decode, kind
from llmpipe.data.readers import Line, checked, lines
from llmpipe.errors import Problem

OWN_LISTS = {"messages", "conversations", "history", "prompt", "completion"}  # parts of one row, not rows


def _syntax(error: Exception, unit: str) -> str:
    """Say what is wrong with a line or a file that is not JSON."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if not isinstance(error, json.JSONDecodeError):
        return "there is a number with thousands of digits; write it as a string"  # which Python refuses
    rest = error.doc[error.pos :].strip()
    if error.msg.startswith("Unterminated string"):
        return f"the {unit} ends inside a string; was the file cut off?"
    if any(word.startswith(rest) for word in ("true", "false", "null")):
        return f"the {unit} ends before its last bracket is closed; was the file cut off?"
    if error.msg == "Extra data":
        return f"more follows the first value at column {error.colno}; put one object on each line"
    if error.msg.startswith("Invalid control character"):
        return f"there is a bare tab or line break in the text at column {error.colno}; write \\t or \\n"
    return f"this is not JSON at column {error.colno}: {error.msg[0].lower()}{error.msg[1:]}"


def _objects(found: Iterable[Line], name: str) -> Iterator[Row | Problem]:
    """Yield the rows of lines that hold one object each."""
    for number, text, problem in found:
        if problem:
            yield problem
        elif text.strip():
            try:
                yield checked(decode(text.rstrip()), f"{name}:{number}")
            except (ValueError, RecursionError) as error:
                yield BadRow(_syntax(error, "line"), f"{name}:{number}", raw=text)


def json_lines(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """Yield an object a line."""
    return _objects(lines(file, name), name)


def json_file(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """Yield the rows of a list, of an object that holds one, or of lines with an object each."""
    found = list(lines(file, name))
    text = "".join(line for _, line, _ in found).rstrip()
    bad: list[Problem] = [problem for _, _, problem in found if problem]
    try:
        value = decode(text) if text else []
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "\n{" in text:
            yield from _objects(found, name)
        else:
            yield from bad or [Problem(_syntax(error, "file"), f"{name}:{getattr(error, 'lineno', 1)}")]
        return
    if isinstance(value, dict):
        lists = [key for key, cell in value.items() if key not in OWN_LISTS and _has_objects(cell)]
        if len(lists) > 1:
            what = f"the object holds {len(lists)} lists of objects ({', '.join(lists)})"
            bad.append(Problem(f"{what}; put each into a file of its own", name))
        value = value[lists[0]] if lists else [value]
    if not isinstance(value, list):
        bad.append(Problem(f"the file holds {kind(value)}; it must hold a list of objects", name))
    # Behind a bad byte, and among several lists, no row can be trusted to be the one that is meant.
    yield from bad or (checked(item, f"{name}: row {number}") for number, item in enumerate(value, 1))


def _has_objects(cell: object) -> bool:
    return isinstance(cell, list) and any(isinstance(item, dict) for item in cell)
