"""What a search for personal data returns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

Kind = Literal["email", "phone", "ip", "iban", "card", "key"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Bounds = tuple[int, int]
"""Start and end of a find, in characters of the text."""


class Span(NamedTuple):
    """Personal data of one kind, or of one of presidio's entities, in `text[start:end]`."""

    kind: Kind | str
    start: int
    end: int


def apart(bounds: Iterable[Bounds], taken: list[Bounds]) -> list[Bounds]:
    """Return the bounds that do not overlap those that are taken."""
    return [(start, end) for start, end in bounds if all(end <= first or last <= start for first, last in taken)]


LONG_NUMBER = re.compile(r"\d(?:[ \u00a0.()/-]{0,3}\d){6}")
"""Seven digits, as cards and phone numbers have; few texts do, and this is faster than looking for either."""
BEFORE = 40
"""Characters before a number in which a word that tells what it is is looked for."""


def nearest(words: re.Pattern[str], text: str, start: int, *, lines: int = 1) -> int:
    """Return where the last of some words ends before `start`, at most `lines - 1` lines above; -1 if there is none."""
    near = "\n".join(text[max(0, start - BEFORE) : start].split("\n")[-lines:])
    ends = [match.end() for match in words.finditer(near)]
    return start - len(near) + ends[-1] if ends else -1
