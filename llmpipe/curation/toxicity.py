"""toxicity: drops texts with insults and slurs, by a list of words with three degrees of severity.

A list sees words, not what is meant: it drops a quotation, a dialect and a joke, and lets polite hatred pass
(docs/curate-people.md has figures).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llmpipe.curation import Verdict
from llmpipe.settings import Strict

Severity = Literal["mild", "strong", "severe"]
DEGREES: dict[Severity, int] = {"mild": 1, "strong": 2, "severe": 3}
TOKEN = re.compile(r"[\w@$*]+")  # a$$ and f*ck are words
Phrase = tuple[str, ...]


def _are_words(words: dict[Severity, list[str]]) -> dict[Severity, list[str]]:
    for word in (word for listed in words.values() for word in listed):
        if not TOKEN.search(word):
            raise PydanticCustomError("step", "'{word}' is not a word", {"word": word})
    return words


class Settings(Strict):
    """Which words are toxic, and how many make a text so."""

    step: Literal["toxicity"] = "toxicity"
    action: Literal["report", "drop"] = Field("drop", description="leave out the text, or only count what is found")
    severity: Severity = Field("strong", description="the least severe words that count")
    share: float = Field(
        0.0, ge=0, lt=1, description="of a text's words; dropped when more of them are toxic, 0: at the first"
    )
    words: Annotated[dict[Severity, list[str]], Field(min_length=1), AfterValidator(_are_words)] | None = Field(
        None, description="words and phrases in place of the package's: {severe: [word, two words]}"
    )


@cache
def packaged_words() -> dict[Severity, list[str]]:
    """Return the package's words by severity."""
    content = tomllib.loads(files("llmpipe.curation").joinpath("toxic_words.toml").read_text(encoding="utf-8"))
    return {severity: content[severity].split() for severity in DEGREES}


def toxic(tokens: list[str], phrases: dict[str, list[Phrase]]) -> list[Phrase]:
    """Return the phrases that tokens hold, in order; `phrases` are listed by their first word, the longest first."""
    found = []
    for place, token in enumerate(tokens):
        for phrase in phrases.get(token, ()):
            if tuple(tokens[place : place + len(phrase)]) == phrase:
                found.append(phrase)
                break
    return found


def build(settings: Settings) -> Callable[[str], Verdict]:
    """Return the step; it finds the words, as they are listed."""
    phrases: dict[str, list[Phrase]] = {}
    for severity, words in (settings.words or packaged_words()).items():
        if DEGREES[severity] >= DEGREES[settings.severity]:
            for word in words:
                tokens = tuple(TOKEN.findall(word.lower()))
                phrases.setdefault(tokens[0], []).append(tokens)
    for listed in phrases.values():
        listed.sort(key=len, reverse=True)

    def step(text: str) -> Verdict:
        tokens = TOKEN.findall(text.lower())
        found = toxic(tokens, phrases)
        if settings.action == "drop" and sum(map(len, found)) > settings.share * len(tokens):
            return Verdict((), tuple(map(" ".join, found)))
        return Verdict((text,), tuple(map(" ".join, found)))

    return step
