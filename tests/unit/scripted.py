"""An engine that answers by a script, a word at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmpipe.errors import TalkError
from llmpipe.talk.engine import Message, Piece, Sampling, Usage


class ScriptedEngine:
    """Gives one answer after the other, the last one again and again; a token is a word.

    `asked` has the messages, or the text, of every call, `how` the samplings, and `stopped` how many answers were
    closed before their end. An answer that is an error is raised.
    """

    def __init__(
        self, answers: Sequence[str | Exception], *, name: str = "scripted", context: int = 10_000, chats: bool = True
    ) -> None:
        self.answers = list(answers)
        self.name, self.context, self.chats = name, context, chats
        self.asked: list[list[Message] | str] = []
        self.how: list[Sampling] = []
        self.stopped = 0
        self.is_closed = False

    def count(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> int:
        return sum(len(str(message["content"]).split()) for message in messages)

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        if (tokens := self.count(messages)) > self.context:
            raise TalkError(f"{tokens} tokens do not fit into a context of {self.context}")
        yield from self._told(list(messages), tokens, how)

    def complete(self, text: str, how: Sampling) -> Iterator[Piece]:
        yield from self._told(text, len(text.split()), how)

    def close(self) -> None:
        self.is_closed = True

    def _told(self, asked: list[Message] | str, tokens: int, how: Sampling) -> Iterator[Piece]:
        self.asked.append(asked)
        self.how.append(how)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        words = answer.split(" ")
        kept = words[: how.max_new_tokens]
        try:
            for number, word in enumerate(kept):
                yield Piece(word if number == 0 else f" {word}")
        except GeneratorExit:
            self.stopped += 1
            raise
        finish = "stop" if len(kept) == len(words) else "length"
        yield Piece("", finish=finish, usage=Usage(tokens, len(kept)))
