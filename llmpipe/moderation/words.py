"""The layers `words` and `personal`: lists of words, and what identifies people or opens doors by its form.

Lists and detectors are those of `curate` (`toxicity`, `pii`). A list sees words, not what is meant.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence

from llmpipe.curation.pii import find
from llmpipe.curation.toxicity import TOKEN, Phrase, by_first_word, toxic
from llmpipe.moderation import Find


class Words:
    """Finds the words and phrases of lists, each list a category.

    Capitals, full-width letters and invisible characters within a word make no difference; other spellings do.
    """

    def __init__(self, lists: Mapping[str, Sequence[str]]) -> None:
        self._categories: dict[Phrase, list[str]] = {}
        for category, words in lists.items():
            for word in words:
                self._categories.setdefault(tuple(TOKEN.findall(word.lower())), []).append(category)
        self._phrases = by_first_word(word for words in lists.values() for word in words)
        self.longest = max(map(len, self._categories), default=1)
        """Words in the longest phrase."""

    def find(self, text: str) -> list[Find]:
        """Return the words of the lists, by their place in the text."""
        plain, places = _plain(text)
        matches = list(TOKEN.finditer(plain))
        return [
            Find(category, 1.0, places[matches[first].start()], places[matches[first + len(phrase) - 1].end() - 1] + 1)
            for first, phrase in toxic([match[0] for match in matches], self._phrases)
            for category in self._categories[phrase]
        ]


def _plain(text: str) -> tuple[str, Sequence[int]]:
    """Return a text as lists are read, and for each character of it the place in the text that it comes from."""
    if text.isascii():
        return text.lower(), range(len(text))
    pairs = [
        (plain, place)
        for place, char in enumerate(text)
        for plain in unicodedata.normalize("NFKC", char).lower()
        if unicodedata.category(plain) != "Cf"  # zero-width characters and soft hyphens
    ]
    return "".join(plain for plain, _ in pairs), [place for _, place in pairs]


class Personal:
    """Finds e-mail, phone, IP, IBAN, card and keys of services and private keys."""

    def __init__(self, kinds: Collection[str]) -> None:
        self._kinds = kinds

    def find(self, text: str) -> list[Find]:
        """Return what is found of the kinds, by its place in the text."""
        return [Find(span.kind, 1.0, span.start, span.end) for span in find(text) if span.kind in self._kinds]
