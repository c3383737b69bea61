"""What a search for personal data returns."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

Kind = Literal["email", "phone", "ip", "iban", "card", "key"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Bounds = tuple[int, int]
"""Start and end of a find, in characters of the text."""


class Span(NamedTuple):
    """Personal data of one kind in `text[start:end]`."""

    kind: Kind
    start: int
    end: int


BEFORE = 40
"""Characters before a number in which a word that tells what it is is looked for."""


def nearest(words: re.Pattern[str], text: str, start: int, *, lines: int = 1) -> int:
    """Return where the last of some words ends before `start`, at most `lines - 1` lines above; -1 if there is none."""
    near = text[max(0, start - BEFORE) : start]
    near = "\n".join(near.split("\n")[-lines:])
    return start - len(near) + max((hit.end() for hit in words.finditer(near)), default=-1 - start + len(near))
