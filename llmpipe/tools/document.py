"""A file as `read_file` sees it: numbered parts, and what there is to say of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmpipe.errors import TalkError

LONGEST_LINE = 2_000
"""A longer line is several parts, so that all of it can be read."""


@dataclass(frozen=True)
class Document:
    """What a reader found: `parts` are lines, rows or pages, as `unit` says, and `heading` stands above each few.

    `begins`: whether the beginning is shown along with what is said `about` the file.
    """

    unit: str
    parts: Sequence[str]
    about: str
    heading: str = ""
    begins: bool = True


def decoded(data: bytes, name: str) -> str:
    """Return a text in UTF-8, or in UTF-16 where its mark says so.

    Raises:
        TalkError: it is none.
    """
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise TalkError(f"{name} is no text in UTF-8", hint="save it as UTF-8") from error
    if "\0" in text:
        raise TalkError(f"{name} is no text: there are NUL characters in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def as_lines(text: str) -> list[str]:
    """Return the lines of a text, and parts of lines that are too long."""
    lines = text.rstrip("\n").split("\n") if text else []
    return [line[start : start + LONGEST_LINE] for line in lines for start in range(0, max(1, len(line)), LONGEST_LINE)]
