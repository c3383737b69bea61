"""From tokens to text as they come: only whole characters, and nothing of a text that ends the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What decoding writes where the bytes of a character are not all there yet."""
BEFORE = 6
"""How many tokens of the prompt are decoded along, for some tokenizers write a space only between two words."""


class Written:
    """The text of an answer, token by token.

    `decode` turns ids into text. The text grows by what the newest tokens add to the decoding of those just before
    them, so that a long answer costs no more for each token than a short one.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, tuple(filter(None, stop))
        self.ids = list(prompt[-BEFORE:])
        self.first, self.shown = 0, len(self.ids)
        self.held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Return what can be shown now."""
        self.ids.append(token)
        return self._let_out(self._grown())

    def rest(self) -> str:
        """Return what was held back, once there are no more tokens; a character cut in two stays out."""
        text, self.held = ("" if self.is_stopped else self._grown(last=True)), ""
        return text

    def _grown(self, *, last: bool = False) -> str:
        before = self.decode(self.ids[self.first : self.shown])
        now = self.decode(self.ids[self.first :])
        if last:
            return self.held + now[len(before) :].rstrip(BROKEN)
        if len(now) <= len(before) or now.endswith(BROKEN):
            return ""
        self.first, self.shown = self.shown, len(self.ids)
        return now[len(before) :]

    def _let_out(self, text: str) -> str:
        """Hold back what may be the beginning of a text that ends the answer."""
        text, self.held = self.held + text, ""
        ends = [place for end in self.stop if (place := text.find(end)) >= 0]
        if ends:
            self.is_stopped = True
            return text[: min(ends)]
        longest = max((_overlap(text, end) for end in self.stop), default=0)
        if longest:
            text, self.held = text[:-longest], text[-longest:]
        return text


def _overlap(text: str, end: str) -> int:
    """Return the length of the longest beginning of `end` that the text ends in."""
    return next((size for size in range(min(len(text), len(end) - 1), 0, -1) if text.endswith(end[:size])), 0)
