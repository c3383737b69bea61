"""What an answer is made of while it comes, beside the model's words."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from llmpipe.talk.engine import Message, Piece


@dataclass(frozen=True)
class Note:
    """A step on the way to an answer, to be shown beside it."""

    text: str


@dataclass(frozen=True)
class Step:
    """Calls of tools with all their results, which are kept as turns of the conversation before the model goes on."""

    messages: tuple[Message, ...]


Parts = Generator[Piece | Note, None, None]
"""An answer as it comes; closing it stops the model."""
Steps = Generator[Piece | Note | Step, None, None]
"""An answer on whose way there are steps."""
