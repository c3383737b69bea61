"""What the memory gives: messages, conversations, facts and summaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmpipe.talk.engine import Message


@dataclass(frozen=True)
class Stored:
    """A message that was kept: its text, when (UTC, as ISO 8601 has it), and what a model is told.

    `page` is what only the page of `serve` needs, to show the message again.
    """

    id: int
    conversation: int
    role: str
    content: str
    when: str
    message: Message
    page: dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A conversation; `when` something was last said in it, `turns` how many messages the user sent."""

    id: int
    title: str
    model: str
    when: str
    turns: int


@dataclass(frozen=True)
class Fact:
    """What the user asked to keep."""

    id: int
    text: str
    when: str


@dataclass(frozen=True)
class Summary:
    """What was said in a conversation up to the message `until`."""

    until: int
    text: str
