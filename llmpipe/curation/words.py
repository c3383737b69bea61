"""Words and runs of words, as the steps that compare texts see them: lower case, without punctuation."""

from __future__ import annotations

import re

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""Chinese and Japanese are written without spaces: each of their characters is a word here."""


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return WORD.findall(text.lower())


def runs(found: list[str], size: int) -> list[str]:
    """Return all runs of `size` words; where there are fewer words, the one run of them all."""
    if len(found) <= size:
        return [" ".join(found)]
    return [" ".join(run) for run in zip(*(found[start:] for start in range(size)), strict=False)]
