"""Text as the memory keeps it, indexes it and looks for it."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import Any

from llmpipe.talk.engine import Message

TITLE_CHARS = 60
QUERY_WORDS = 100

# Han and kana, which are written without spaces: each character is a word of the index, and two of them a word that
# is looked for. So a name of two characters is found, which an index of trigrams does not do.
_UNSPACED = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ONE_UNSPACED = re.compile(f"([{_UNSPACED}])")
_RUNS = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")


def spaced(text: str) -> str:
    """Return a text as it is indexed: in one form of Unicode, with spaces around characters that are words."""
    return _ONE_UNSPACED.sub(r" \1 ", unicodedata.normalize("NFKC", text))


def query_of(text: str) -> str:
    """Return a text as a query for any of its words, each quoted, so that nothing in it is syntax.

    Of a long text the first and the last words are taken; one without words is a query that nothing answers.
    """
    text = unicodedata.normalize("NFKC", text)
    plain = "".join(char if unicodedata.category(char)[0] in "LNM" else " " for char in text)
    words = []
    for run in (run for word in plain.split() for run in _RUNS.findall(word)):
        pairs = [f"{a} {b}" for a, b in pairwise(run)] if _ONE_UNSPACED.match(run) else []
        words += pairs or [run]
    words = list(dict.fromkeys(words))
    if len(words) > QUERY_WORDS:
        words = words[: QUERY_WORDS // 2] + words[-QUERY_WORDS // 2 :]
    return " OR ".join(f'"{word}"' for word in words or [""])


def text_of(message: Message) -> str:
    """Return the text of a message, whose content may be in parts, or missing."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return plain(content)


def joined(content: Any) -> str:
    """Return the text of a message's content as a model reads it: of parts, with nothing between them."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def plain(text: str) -> str:
    """Replace what UTF-8 has no bytes for: halves of pairs, as broken input has them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def line_of(text: str, *, chars: int = TITLE_CHARS) -> str:
    """Return a text as one line, cut where it is longer."""
    line = plain(" ".join(text.split()))
    return line if len(line) <= chars else line[: chars - 1].rstrip() + "…"


def excerpt(text: str, query: str, *, chars: int = 80) -> str:
    """Return a line of a text, from shortly before the first word that it shares with a query."""
    line = " ".join(text.split())
    places = [line.lower().find(word.lower()) for word in query.split()]
    start = max(0, min((place for place in places if place >= 0), default=0) - chars // 4)
    return line_of(f"…{line[start:].lstrip()}" if start else line, chars=chars)
