"""An engine that answers by a script, a word at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from llmpipe.errors import TalkError
from llmpipe.talk.calls import calls_in
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


class CallingEngine(ScriptedEngine):
    """Calls where its script has a call as Hermes writes it, if it is offered tools; `offered` has their names.

    An answer may be a function, which is given the messages.
    """

    def __init__(self, answers: Sequence[Any], **more: Any) -> None:
        super().__init__(answers, **more)
        self.offered: list[list[str]] = []

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        self.offered.append([tool["function"]["name"] for tool in tools])
        if callable(self.answers[0]):
            self.answers.insert(0, self.answers.pop(0)(messages))
        answer = self.answers[0]
        if not tools or not isinstance(answer, str) or "<tool_call>" not in answer:
            yield from super().chat(messages, how, tools)
            return
        if len(self.answers) > 1:
            self.answers.pop(0)
        self.asked.append(list(messages))
        self.how.append(how)
        said, *calls = answer.replace("</tool_call>", "").split("<tool_call>")
        if said.strip():
            yield Piece(said.strip())
        found = tuple(call for body in calls for call in calls_in(body, {}))
        yield Piece("", "tool_calls", Usage(self.count(messages), 5), found)


def call(name: str, /, **arguments: Any) -> str:
    """Return a call as a script has it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
