"""An engine that says what a test wrote down."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmpipe.talk.engine import Message, Piece, Sampling, Usage


@dataclass
class ScriptedEngine:
    """Gives the answers in turn, again and again, a word a piece; an exception among them is raised there.

    A token is a word. `go_on`, where given, is waited for before each piece.
    """

    answers: Sequence[str | Exception | tuple[Any, ...]]
    name: str = "scripted"
    context: int = 1000
    chats: bool = True
    go_on: threading.Semaphore | None = None
    seen: list[tuple[Any, Sampling, tuple[Message, ...]]] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    """An entry for each answer that ended or was stopped: whether it came to its end."""

    def count(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> int:
        return sum(len(str(message.get("content") or "").split()) + 1 for message in messages)

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        return self._told(messages, how, tools, self.count(messages))

    def complete(self, text: str, how: Sampling) -> Iterator[Piece]:
        return self._told(text, how, (), len(text.split()))

    def close(self) -> None:
        pass

    def _told(self, asked: Any, how: Sampling, tools: Sequence[Message], taken: int) -> Iterator[Piece]:
        answer = self.answers[len(self.seen) % len(self.answers)]
        self.seen.append((asked, how, tuple(tools)))
        parts = answer if isinstance(answer, tuple) else (answer,)
        words = [word for part in parts for word in (_words(part) if isinstance(part, str) else [part])]
        is_whole = False
        try:
            for word in words[: how.max_new_tokens]:
                if self.go_on:
                    self.go_on.acquire()
                if isinstance(word, Exception):
                    raise word
                yield word if isinstance(word, Piece) else Piece(word)
            is_whole = True
            told = min(len(words), how.max_new_tokens)
            yield Piece("", "stop" if told == len(words) else "length", Usage(taken, told))
        finally:
            self.closed.append(is_whole)


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]
