"""What of a conversation is sent to a model, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmpipe.talk.engine import Engine, Message, Piece, Sampling

if TYPE_CHECKING:
    from llmpipe.talk.memory import Memory

LEFT_OUT = "[left out: there is no room for it any more]"
"""Stands where a tool's result was."""


@dataclass(frozen=True)
class Asked:
    """Who is asked, how the answer is sampled, and which tools it may call."""

    engine: Engine
    how: Sampling
    tools: Sequence[Message] = ()

    def tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens messages have as a prompt."""
        return self.engine.count(messages, self.tools)

    def answer_tokens(self, asked: Sequence[Message]) -> int:
        """Return how much of the context is kept free for an answer.

        That is what it may have, at most half, and less where the question needs more than the other half.
        """
        context = self.engine.context
        return max(1, min(self.how.max_new_tokens, context // 2, context - self.tokens(asked)))

    def answer(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """Have the model answer; one that knows no turns goes on with the last text."""
        if self.engine.chats:
            return self.engine.chat(messages, self.how, self.tools)
        return self.engine.complete(str(messages[-1]["content"]), self.how)


def with_system(system: str | None, turns: Sequence[Message]) -> list[Message]:
    """Put the system text before the turns."""
    return [*([{"role": "system", "content": system}] if system else ()), *turns]


def last_turn(turns: Sequence[Message]) -> list[Message]:
    """Return the newest question and what tools said to it."""
    start = next(number for number in range(len(turns) - 1, -1, -1) if turns[number]["role"] == "user")
    return list(turns[start:])


def of_memory(
    asked: Asked, memory: Memory, conversation: int, system: str | None, last: Sequence[Message]
) -> tuple[list[Message], int]:
    """Return what to send of a conversation whose last turn is given, and how many messages were left out.

    A model that knows no turns sees the last text alone.
    """
    if not asked.engine.chats:
        return list(last[-1:]), 0
    from llmpipe.talk.window import fitted

    least = with_system(system, shortened(asked, system, last))
    window = fitted(
        asked.engine, memory, conversation, system, answer_tokens=asked.answer_tokens(least), tools=asked.tools
    )
    return list(window.messages), window.left_out


def without_oldest(asked: Asked, system: str | None, turns: Sequence[Message]) -> tuple[list[Message], int]:
    """Leave out the oldest questions with their answers until the rest fits; the last question stays.

    A model that knows no turns sees the last text alone.
    """
    if not asked.engine.chats:
        return list(turns[-1:]), 0
    last = shortened(asked, system, last_turn(turns))
    before = turns[: len(turns) - len(last)]
    most = asked.engine.context - asked.answer_tokens(with_system(system, last))
    starts = [number for number, turn in enumerate(before) if turn["role"] == "user"]
    for start in starts:
        if asked.tokens(messages := with_system(system, [*before[start:], *last])) <= most:
            return messages, start
    return with_system(system, last), len(before)


def shortened(asked: Asked, system: str | None, last: Sequence[Message]) -> list[Message]:
    """Leave out what tools gave, until a quarter of the context, or less if an answer needs less, is free."""
    room = asked.engine.context - min(asked.how.max_new_tokens, asked.engine.context // 4)
    return without_results(last, lambda turn: asked.tokens(with_system(system, turn)) <= room)


def without_results(last: Sequence[Message], fits: Callable[[Sequence[Message]], bool]) -> list[Message]:
    """Leave out what tools gave, the oldest first, until a turn fits; every call keeps a result."""
    turn = list(last)
    for place, message in enumerate(last):
        if message["role"] == "tool" and not fits(turn):
            turn[place] = message | {"content": LEFT_OUT}
    return turn
