"""Moderates an answer while it comes, and holds back as much as it takes that nothing is shown which may not be.

`words` and `personal` look after each word: what may still become part of a find is held back, a word or two in most
texts, up to `LOOK_CHARS` behind digits and signs that personal data begins with. `classifier` holds back the sentence,
`guard` the whole answer; each of them only where a rule of the policy blocks or redacts output.

What is shown does not depend on the parts in which the text comes: it is cut anew, by its own words and sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from llmpipe.curation.toxicity import TOKEN
from llmpipe.moderation import LayerName
from llmpipe.moderation.moderator import Decision, Mark, Moderator, new_reference
from llmpipe.moderation.words import Words

LOOK_CHARS = 128
"""How far words reach that tell a number's kind, and a key of several lines from its first line to the next."""
WORD = re.compile(r"\s*\S{1,512}+(?:\s|(?=\S))")
"""A word is over once a space follows, or after 512 characters."""
SIGNS = re.compile(r"[@\d(\[+]|-----")
"""What all personal data has in its first word or its second."""
SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’)\]]*\s|\n")
LONGEST_SENTENCE = 400


class Blocked(Exception):
    """The rest of an answer is not shown."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.rule)
        self.decision = decision


class _Filter(Protocol):
    """Passes a text on, with a delay."""

    def add(self, text: str) -> Iterator[str]: ...

    def end(self) -> Iterator[str]: ...


class Stream:
    """One answer on its way; `decisions` are those so far."""

    def __init__(self, moderator: Moderator) -> None:
        self.decisions: list[Decision] = []
        self._moderator, self._reference = moderator, new_reference()
        self._filters = [_filter(name, self) for name in moderator.layers]

    def add(self, text: str) -> Iterator[str]:
        """Take the next part of the answer, and yield what may be shown.

        Raises:
            Blocked: a rule blocks what comes next; all that was yielded may be shown.
        """
        return self._through(0, text)

    def end(self) -> Iterator[str]:
        """Yield the rest.

        Raises:
            Blocked: as above.
        """
        for number, one in enumerate(self._filters, start=1):
            for part in one.end():
                yield from self._through(number, part)

    def _through(self, first: int, text: str) -> Iterator[str]:
        if first == len(self._filters):
            if text:
                yield text
            return
        for part in self._filters[first].add(text):
            yield from self._through(first + 1, part)

    def marks(self, layer: LayerName, text: str) -> list[Mark]:
        """Return what a layer finds."""
        return self._moderator.marks(layer, text, "output")

    def passed(self, text: str, marks: Sequence[Mark]) -> str:
        """Return what may be shown of a passage, or raise Blocked."""
        if not marks:
            return text
        verdict = self._moderator.decide(text, marks, "output", self._reference)
        self.decisions += verdict.decisions
        if verdict.blocked:
            raise Blocked(verdict.blocked)
        return verdict.text


def _filter(layer: LayerName, stream: Stream) -> _Filter:
    moderator = stream._moderator
    words = moderator.layers[layer]
    found: _Filter
    if isinstance(words, Words):
        found = _ByWord(layer, stream, lambda held: _last_tokens(held, words.longest - 1), look_chars=0)
    elif layer == "personal":
        found = _ByWord(layer, stream, _before_signs, look_chars=LOOK_CHARS)
    else:
        found = _BySentence(layer, stream) if layer == "classifier" else _Whole(layer, stream)
    return found if moderator.policy.holds_back(layer) else _Beside(found)


class _Beside:
    """Lets a text pass as it comes: nothing that is found would change it."""

    def __init__(self, inner: _Filter) -> None:
        self._inner = inner

    def add(self, text: str) -> Iterator[str]:
        yield text
        for _ in self._inner.add(text):
            pass

    def end(self) -> Iterator[str]:
        yield from ()
        for _ in self._inner.end():
            pass


class _ByWord:
    """Looks after each word; `hold` says where in what is not shown yet that begins which has to wait.

    `look_chars` of what was shown are looked at again: they may say what a number is.
    """

    def __init__(self, layer: LayerName, stream: Stream, hold: Callable[[str], int], *, look_chars: int) -> None:
        self._layer, self._stream, self._hold, self._look_chars = layer, stream, hold, look_chars
        self._shown = self._held = self._rest = ""

    def add(self, text: str) -> Iterator[str]:
        self._rest += text
        while word := WORD.match(self._rest):
            self._rest = self._rest[word.end() :]
            self._held += word[0]
            if due := self._hold(self._held):
                yield self._released(due)

    def end(self) -> Iterator[str]:
        self._held, self._rest = self._held + self._rest, ""
        yield self._released(len(self._held))

    def _released(self, due: int) -> str:
        """Return what may be shown of the first characters that are held, all but a find that reaches beyond them."""
        window, before = self._shown + self._held, len(self._shown)
        marks = [one for one in self._stream.marks(self._layer, window) if one.end > before]
        upto = before + due
        for mark in sorted(marks, key=lambda one: one.start, reverse=True):
            if mark.start < upto < mark.end:
                upto = max(before, mark.start)
        settled = [_moved(one, by=-before) for one in marks if one.end <= upto]
        passage = window[before:upto]
        self._shown, self._held = window[max(0, upto - self._look_chars) : upto], window[upto:]
        return self._stream.passed(passage, settled) if passage else ""


def _moved(mark: Mark, *, by: int) -> Mark:
    find = mark.find
    moved = type(find)(find.category, find.score, max(0, find.start + by), find.end + by)
    return Mark(moved, mark.layer, mark.rule, mark.action)


def _last_tokens(held: str, count: int) -> int:
    """Return where the last words begin, which may be the first of a phrase; at the end where no phrase has several."""
    if count == 0:
        return len(held)
    starts = [match.start() for match in TOKEN.finditer(held)]
    return starts[-count] if len(starts) >= count else 0


def _before_signs(held: str) -> int:
    """Return where the word before the first sign of personal data begins, or the last word where there is none."""
    words = [match.span() for match in re.finditer(r"\S+", held)]
    far = len(held) - LOOK_CHARS
    signed = (n for n, (start, end) in enumerate(words) if end > far and SIGNS.search(held, start, end))
    first = next(signed, len(words))
    return words[max(0, first - 1)][0] if words else 0


class _BySentence:
    """Looks at each sentence once it is whole."""

    def __init__(self, layer: LayerName, stream: Stream) -> None:
        self._layer, self._stream, self._rest = layer, stream, ""

    def add(self, text: str) -> Iterator[str]:
        self._rest += text
        while end := _sentence(self._rest):
            sentence, self._rest = self._rest[:end], self._rest[end:]
            yield self._judged(sentence)

    def end(self) -> Iterator[str]:
        sentence, self._rest = self._rest, ""
        yield self._judged(sentence)

    def _judged(self, sentence: str) -> str:
        """Return a sentence, or what stands for it, with the space around it as it was."""
        body = sentence.strip()
        if not body:
            return sentence
        before, _, after = sentence.partition(body)
        return before + self._stream.passed(body, self._stream.marks(self._layer, body)) + after


def _sentence(text: str) -> int:
    """Return where the first sentence ends, 0 where it is not whole yet; a long one ends at a space."""
    if found := SENTENCE_END.search(text, 0, LONGEST_SENTENCE):
        return found.end()
    if len(text) < LONGEST_SENTENCE:
        return 0
    return text.rfind(" ", 1, LONGEST_SENTENCE) + 1 or LONGEST_SENTENCE


class _Whole(_BySentence):
    """Looks at the answer once it is whole."""

    def add(self, text: str) -> Iterator[str]:
        self._rest += text
        yield from ()
