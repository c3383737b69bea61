"""What answers: one protocol, a local model or a server behind it.

Messages are those of OpenAI's chat API: `{"role": ..., "content": ...}`, with `tool_calls` and `tool_call_id` where
tools are used. An answer comes piece by piece; whoever closes the iterator stops it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Message = dict[str, Any]
"""One turn, as OpenAI's chat API has it."""
Finish = Literal["stop", "length", "tool_calls", "content_filter"]
"""How an answer ended; `content_filter`: moderation held its rest back."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is sampled. A temperature of 0 is greedy; an answer ends before the first of the texts `stop`."""

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What an answer took, in tokens; `cached` of the prompt's were known from before."""

    prompt_tokens: int
    answer_tokens: int
    cached: int = 0


@dataclass(frozen=True)
class Piece:
    """A part of an answer; the last one says how it ended and what it took, and may have no text.

    A `note` is for the person who asked, and no part of the answer.
    """

    text: str
    finish: Finish | None = None
    usage: Usage | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    note: str | None = None


class Engine(Protocol):
    """A model that answers. All methods may be called from several threads at once."""

    name: str
    """As people and `/v1/models` see it."""
    context: int
    """How many tokens it sees at once, prompt and answer together."""
    chats: bool
    """Whether it knows turns; else it only continues texts."""

    def count(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> int:
        """Return how many tokens a conversation has as a prompt, the opening of the answer included."""
        ...

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        """Answer a conversation.

        Raises:
            TalkError: it does not fit into the context, or the model or server fails.
        """
        ...

    def complete(self, text: str, how: Sampling) -> Iterator[Piece]:
        """Continue a text.

        Raises:
            TalkError: as above.
        """
        ...

    def close(self) -> None:
        """Give memory, threads and connections back."""
        ...
