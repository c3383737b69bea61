"""The tool `read_file`: what is in a file that the user named, a part of it, or where it has some words.

A model says the name of a file, never a path, and it is looked up among the names that there are: no other file can
be meant. A link in the place of a file is not followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmpipe.errors import TalkError, did_you_mean
from llmpipe.tools.document import Document
from llmpipe.tools.documents import READERS
from llmpipe.tools.fence import one_line, plain
from llmpipe.tools.tool import Tool

MOST_BYTES = 20 * 2**20
SHOWN_CHARACTERS = 6_000
"""The most of a file that one call shows: whole lines, rows or pages as far as they fit, but at least a part of one."""
MOST_HITS = 20
AROUND_CHARACTERS = 120
"""What is shown on each side of a word that was searched."""
KEPT_FILES = 4


def tool(named: Callable[[], Sequence[Path]]) -> Tool:
    """Return a tool that reads the files that `named` gives at the time, and keeps the last few."""
    document = lru_cache(maxsize=KEPT_FILES)(_document)

    def call(arguments: Mapping[str, Any]) -> str:
        given = by_name(named())
        if (name := arguments.get("name")) is None:
            return "\n".join(given) or "the user has named no file"
        if (path := given.get(name)) is None:
            there = f"there are {', '.join(given)}" if given else "the user has named no file"
            near = did_you_mean(name[:200], list(given))
            raise TalkError(f"there is no file {one_line(name, 100)}{near}", hint=there)
        found = document(path, *_stamp(path))
        if words := arguments.get("search"):
            return _searched(found, words)
        return _shown(found, arguments.get("first"), arguments.get("last"))

    return Tool(
        name="read_file",
        description=(
            f"Reads a file of the user's: {', '.join(READERS)}. Without first and last it says what is in it; "
            "they are numbers of lines, of rows of a table, or of pages of a PDF. Without a name it lists the files."
        ),
        parameters={
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "as the list of files has it"},
                "first": {"type": "integer", "minimum": 1},
                "last": {"type": "integer", "minimum": 1},
                "search": {"type": "string", "minLength": 1, "maxLength": 200, "description": "words to look for"},
            },
            "additionalProperties": False,
        },
        needs="files",
        call=call,
    )


def by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Return files by the names that a model knows them by: their own, with a number where two are called alike."""
    named: dict[str, Path] = {}
    for path in dict.fromkeys(path.absolute() for path in paths):
        name = base = one_line(path.name, 100)
        number = 1
        while name in named:
            number += 1
            name = f"{base} ({number})"
        named[name] = path
    return named


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes with a file."""
    try:
        found = path.lstat()
    except OSError as error:
        raise TalkError(f"{path.name} cannot be read: {error.strerror}") from error
    return found.st_mtime_ns, found.st_size


def _document(path: Path, _changed: int, _size: int) -> Document:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TalkError(f"{path.name} is none of the kinds that are read: {', '.join(READERS)}")
    return reader(_content(path), one_line(path.name, 100))


def _content(path: Path) -> bytes:
    """Return what is in a file, in no more than one look, so that nothing can be put in its place in between."""
    try:
        # a pipe would be waited for, without O_NONBLOCK for ever
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise TalkError(f"{path.name} is no file")
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        said = "it is a link" if path.is_symlink() else error.strerror
        raise TalkError(f"{path.name} cannot be read: {said}", hint="name the file itself") from error
    if len(data) > MOST_BYTES:
        raise TalkError(f"{path.name} is larger than {MOST_BYTES:,} bytes, the most that is read")
    return data


def _shown(found: Document, first: int | None, last: int | None) -> str:
    """Show parts of a document; without a number, what is in it and as much of its beginning as fits."""
    total = len(found.parts)
    if first is None and last is None:
        return f"{found.about}\n\n{_parts(found, 1, total)}".rstrip() if found.begins else found.about
    first = 1 if first is None else first
    last = total if last is None else min(last, total)
    if first > total:
        raise TalkError(f"there {_are(total, found.unit)}, and none has the number {first}")
    if last < first:
        raise TalkError(f"first is {first} and last {last}: that is none")
    return _parts(found, first, last)


def _parts(found: Document, first: int, last: int) -> str:
    room, number = SHOWN_CHARACTERS, first
    shown: list[str] = []
    while number <= last and room > 0:
        part = plain(found.parts[number - 1])
        if len(part) > room and shown:
            break
        shown.append(part if len(part) <= room else f"{part[:room]} […]")
        room -= len(part) + 1
        number += 1
    heading = _range(found, first, number - 1)
    return "\n".join([heading, *([found.heading] if found.heading else []), *shown])


def _range(found: Document, first: int, last: int) -> str:
    total = len(found.parts)
    more = f"; first: {last + 1} goes on" if last < total else ""
    which = f"{first} to {last}" if last > first else f"{first}"
    return f"[{found.unit} {which} of {total}{more}]"


def _are(total: int, unit: str) -> str:
    return f"is 1 {unit}" if total == 1 else f"are {total:,} {unit}s"


def _searched(found: Document, words: str) -> str:
    """Return where a document has some words, whatever their case, with what stands around them."""
    wanted = " ".join(words.casefold().split())
    hits: list[str] = []
    for number, part in enumerate(found.parts, 1):
        text = " ".join(plain(part).split())
        if (at := text.casefold().find(wanted)) < 0:
            continue
        if len(hits) == MOST_HITS:
            hits.append(f"there is more than these {MOST_HITS}")
            break
        begin, end = max(0, at - AROUND_CHARACTERS), at + len(wanted) + AROUND_CHARACTERS
        hits.append(f"{found.unit} {number}: {'…' * (begin > 0)}{text[begin:end]}{'…' * (end < len(text))}")
    return "\n".join(hits) or f"{one_line(words, 100)} does not stand in it"
