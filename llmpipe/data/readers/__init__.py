"""Readers of files, one for each suffix: they yield a `Row` or a `Problem` for each row that they meet.

A bad row hides neither the rows nor the problems after it. What all of them share is here.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from io import BufferedReader
from typing import Any

from llmpipe.data import BadRow, PassedOver, Row, flaw, kind
from llmpipe.errors import Problem, StageError

Reader = Callable[[BufferedReader, str], Iterator[Row | Problem | PassedOver]]
"""Takes an open file and its name as messages show it."""

Line = tuple[int, str, BadRow | None]  # its number, its text with the line end, what is wrong with its bytes


def lines(file: Iterable[bytes], name: str, *, first: int = 1, offset: int = 0) -> Iterator[Line]:
    """Yield the lines of a UTF-8 file, each with what is wrong with its bytes.

    `first` is the number of the first line and `offset` its place in bytes, where it does not begin the file.
    """
    for number, raw in enumerate(file, first):
        body = raw if offset else raw.removeprefix(codecs.BOM_UTF8)
        problem = None
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            text = body.decode(errors="replace")
            at = offset + len(raw) - len(body) + error.start
            what = f"byte 0x{body[error.start]:02x} at offset {at} is not UTF-8; save the file as UTF-8"
            problem = BadRow(what, f"{name}:{number}", raw=text)
        yield number, text, problem
        offset += len(raw)


def checked(value: object, where: str) -> Row | Problem:
    """Return a row, or what keeps a value from being one."""
    if not isinstance(value, dict):
        what = f'this row is {kind(value)}; it must be an object such as {{"text": "..."}}'
        return BadRow(what, where, raw=value)
    wrong = flaw(value)
    return BadRow(wrong, where, raw=value) if wrong else Row(where, value)


def optional(module: str) -> Any:
    """Import a module of the extra `data`.

    Raises:
        StageError: it is not installed; a run says so before it begins (`llmpipe.packages`).
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise StageError(f"{module} is not installed", hint="pip install 'llmpipe[data]'") from error
