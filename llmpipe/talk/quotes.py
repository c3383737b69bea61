"""What code knows of texts from the web: the sentences that have to do with a question, and marks of sources."""

from __future__ import annotations

import math
import re
from collections import Counter

SENTENCE_CHARS = 300
_WORD = re.compile(r"[^\W_]+")
_MARK = re.compile(r"\[(\d+)\]")
_BEGUN = re.compile(r"\[\d*$")


def words_of(text: str) -> set[str]:
    """Return the words of a text that may tell it from others: numbers, and words of four letters or more."""
    return {word for word in _WORD.findall(text.casefold()) if len(word) > 3 or word.isdecimal() or not word.isascii()}


def quotes_of(text: str, question: str, *, most: int) -> tuple[str, ...]:
    """Return the sentences that share most with a question, as they stand and in their order; none if none does.

    A word counts for the less, the more sentences have it, as in Spärck Jones, 1972.
    """
    sentences = list(dict.fromkeys(_sentences(text)))
    having = [words_of(sentence) for sentence in sentences]
    spread = Counter(word for words in having for word in words)
    about = words_of(question)
    scores = [sum(math.log(1 + len(sentences) / spread[word]) for word in words & about) for words in having]
    best = sorted(range(len(sentences)), key=lambda place: -scores[place])[:most]
    return tuple(sentences[place] for place in sorted(best) if scores[place] > 0)


def _sentences(text: str) -> list[str]:
    parts = (part for line in text.splitlines() for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", line))
    lines = (" ".join(part.split()) for part in parts)
    return [line if len(line) <= SENTENCE_CHARS else line[: SENTENCE_CHARS - 1] + "…" for line in lines if line]


class Cited:
    """Takes marks such as `[7]` out of an answer that comes in parts, where there is no source of that number."""

    def __init__(self, sources: int) -> None:
        self._sources, self._held = sources, ""
        self.numbers: set[int] = set()
        """Those that were named."""

    def read(self, text: str) -> str:
        """Return what can be shown; what may be the beginning of a mark is held back."""
        text = self._held + text
        begun = _BEGUN.search(text)
        self._held = begun[0] if begun else ""
        return _MARK.sub(self._mark, text[: begun.start()] if begun else text)

    def rest(self) -> str:
        """Return what was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _mark(self, found: re.Match[str]) -> str:
        number = int(found[1][:9])
        if not 1 <= number <= self._sources:
            return ""
        self.numbers.add(number)
        return found[0]
