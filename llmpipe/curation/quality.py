"""quality: drops texts that are no prose, by the rules of Gopher, C4 and FineWeb; the thresholds are the papers'.

    - quality
    - {step: quality, gopher: {min_words: 20}, c4: null}

`null` leaves out a set of rules. Words are what stands between spaces, so the rules are not for languages without them.
Gopher: Rae et al. 2021, section A.1.1; C4: Raffel et al. 2020, section 2.2; FineWeb: Penedo et al. 2024, section 3.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from llmpipe.curation import Verdict, repetition
from llmpipe.curation.repetition import Repetition
from llmpipe.settings import Strict

Share = Annotated[float, Field(ge=0, le=1)]

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "-", "*")
ELLIPSES = ("...", "…")
LETTER = re.compile(r"[^\W\d_]")
SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
ENDS = (".", "?", "!", '"', "”")
NOTICES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class Gopher(Strict):
    """Gopher's rules for documents."""

    min_words: int = Field(default=50, ge=0, description="fewest words")
    max_words: int = Field(default=100_000, ge=1, description="most words")
    min_word_length: float = Field(default=3, ge=0, description="least mean length of the words, in characters")
    max_word_length: float = Field(default=10, gt=0, description="greatest mean length of the words, in characters")
    max_symbols: Share = Field(default=0.1, description="most # per word, and most ellipses per word")
    max_bullet_lines: Share = Field(default=0.9, description="most lines that begin with a bullet")
    max_ellipsis_lines: Share = Field(default=0.3, description="most lines that end with an ellipsis")
    min_letter_words: Share = Field(default=0.8, description="fewest words with a letter in them")
    min_stop_words: int = Field(default=2, ge=0, le=8, description="fewest of: the, be, to, of, and, that, have, with")


class C4(Strict):
    """C4's rules: lines go first, then pages of which too little is left."""

    end_punctuation: bool = Field(
        default=True, description="drop lines without a full stop, mark or quote at their end"
    )
    min_words_in_line: int = Field(default=3, ge=0, description="drop lines of fewer words")
    min_sentences: int = Field(default=5, ge=0, description="fewest sentences left")
    notices: bool = Field(default=True, description="drop lines about javascript, cookies and terms of use")
    braces: bool = Field(default=True, description="drop pages with a curly bracket, which is code")


class FineWeb(Strict):
    """FineWeb's own rules, on top of the others."""

    min_ended_lines: Share = Field(default=0.12, description="fewest lines that end in punctuation")
    max_repeated_characters: Share = Field(default=0.1, description="most characters in lines that occurred before")
    max_short_lines: Share = Field(default=0.67, description="most lines of up to 30 characters")


SHORT_LINE_CHARACTERS = 30


class Settings(Strict):
    """What `step: quality` understands."""

    step: Literal["quality"] = Field("quality", description="which step this is")
    gopher: Gopher | None = Field(default_factory=Gopher, description="length, words and symbols; null leaves it out")
    repetition: Repetition | None = Field(
        default_factory=Repetition, description="Gopher's rules for what repeats within a text; null leaves it out"
    )
    c4: C4 | None = Field(default_factory=C4, description="lines that are no sentences; null leaves it out")
    fineweb: FineWeb | None = Field(default_factory=FineWeb, description="lists and menus; null leaves it out")


def build(settings: Settings) -> Callable[[str], Verdict]:
    """Return what drops a text at the first rule that it breaks, having taken bad lines out."""
    repeats = repetition.build(settings.repetition) if settings.repetition else None

    def judged(text: str) -> Verdict:
        wrong = _gopher(text, settings.gopher) if settings.gopher else None
        wrong = wrong or (repeats(text) if repeats else None)
        lines_gone: tuple[str, ...] = ()
        if settings.c4 and not wrong:
            text, lines_gone, wrong = _c4(text, settings.c4)
        wrong = wrong or (_fineweb(text, settings.fineweb) if settings.fineweb else None)
        return Verdict((), (wrong,)) if wrong else Verdict((text,), lines_gone)

    return judged


def _gopher(text: str, limits: Gopher) -> str | None:
    found = text.split()
    lines = text.splitlines()
    if (count := len(found)) < max(1, limits.min_words):
        return "too few words"
    if count > limits.max_words:
        return "too many words"
    if not limits.min_word_length <= sum(map(len, found)) / count <= limits.max_word_length:
        return "words of odd length"
    if max(text.count("#"), text.count("...") + text.count("…")) > limits.max_symbols * count:
        return "too many symbols"
    if sum(line.lstrip().startswith(BULLETS) for line in lines) > limits.max_bullet_lines * len(lines):
        return "a list"
    if sum(line.rstrip().endswith(ELLIPSES) for line in lines) > limits.max_ellipsis_lines * len(lines):
        return "lines cut off"
    if sum(1 for word in found if word.isalpha() or LETTER.search(word)) < limits.min_letter_words * count:
        return "too few words with letters"
    if len(STOP_WORDS.intersection(word.lower() for word in found)) < limits.min_stop_words:
        return "too few stop words"
    return None


def _c4(text: str, limits: C4) -> tuple[str, tuple[str, ...], str | None]:
    """Return the text without bad lines, a name for each one gone, and what is wrong with the page."""
    if limits.braces and "{" in text:
        return text, (), "a curly bracket"
    if "lorem ipsum" in text.lower():
        return text, (), "lorem ipsum"
    kept, gone, sentences = [], [], 0
    for written in text.split("\n"):
        line = CITATION.sub("", written).strip() if "[" in written else written.strip()
        if wrong := _line_problem(line, limits):
            gone.append(wrong)
        elif line:
            sentences += max(1, len(SENTENCE_END.findall(line)))
            kept.append(line)
    left = "\n".join(kept)
    return (left, tuple(gone), None if sentences >= limits.min_sentences and left else "too few sentences")


def _line_problem(line: str, limits: C4) -> str | None:
    if not line:
        return None
    if limits.end_punctuation and (not line.endswith(ENDS) or line.endswith(ELLIPSES)):
        return "line without an end"
    if len(line.split(None, limits.min_words_in_line)) < limits.min_words_in_line:
        return "line too short"
    low = line.lower()
    return "notice" if limits.notices and ("javascript" in low or any(part in low for part in NOTICES)) else None


def _fineweb(text: str, limits: FineWeb) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if sum(line.rstrip().endswith((*ENDS, *ELLIPSES, ":", ";")) for line in lines) < limits.min_ended_lines * len(
        lines
    ):
        return "too few lines that end"
    if sum(len(line) <= SHORT_LINE_CHARACTERS for line in lines) > limits.max_short_lines * len(lines):
        return "too many short lines"
    if repetition.repeated_characters(lines) > limits.max_repeated_characters * len(text):
        return "repeated lines"
    return None
