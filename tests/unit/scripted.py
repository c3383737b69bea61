"""An engine that says what a test tells it to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llmpipe.talk.engine import Finish, Message, Piece, Sampling, Usage


class ScriptedEngine:
    """Gives its answers one after the other, word by word; an exception among them is raised.

    A token is a word. `asked` holds what it was asked, as (messages or text, sampling, tools); `stopped` counts the
    answers that were not heard to their end.
    """

    def __init__(self, answers: Iterable[str | Exception] = (), *, name: str = "scripted", context: int = 1024) -> None:
        self.name, self.context, self.chats = name, context, True
        self.answers = list(answers)
        self.asked: list[tuple[list[Message] | str, Sampling, list[Message]]] = []
        self.stopped = 0
        self.is_closed = False

    def count(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> int:
        """Count words, and one for each turn."""
        words = [str(message.get("content") or "").split() for message in messages]
        return sum(map(len, words)) + len(messages) + len(tools)

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        """Give the next answer."""
        self.asked.append(([*messages], how, [*tools]))
        return self._said(how, self.count(messages, tools))

    def complete(self, text: str, how: Sampling) -> Iterator[Piece]:
        """Give the next answer."""
        self.asked.append((text, how, []))
        return self._said(how, len(text.split()))

    def close(self) -> None:
        """Remember that it was closed."""
        self.is_closed = True

    def _said(self, how: Sampling, prompt_tokens: int) -> Iterator[Piece]:
        answer = self.answers.pop(0) if self.answers else "I have nothing more to say."
        if isinstance(answer, Exception):
            raise answer
        words = answer.split(" ")
        finish: Finish = "stop" if len(words) <= how.max_new_tokens else "length"
        words = words[: how.max_new_tokens]
        try:
            for place, word in enumerate(words):
                yield Piece(f" {word}" if place else word)
        except GeneratorExit:
            self.stopped += 1
            raise
        yield Piece("", finish, Usage(prompt_tokens, len(words)))
