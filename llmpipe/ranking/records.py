"""What is ranked, and what is said of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ranked", "bad", "skipped"]
"""What a person said: an order, that all answers are bad, or nothing."""
Source = Literal["rank", "gold", "talk"]
"""Where a prompt came from: a round, a gold question with an order that is known, chat or the page of serve."""
FEWEST, MOST = 2, 6
"""How many answers a person compares at once."""


@dataclass(frozen=True)
class Asked:
    """A prompt: messages of OpenAI's chat API, and `text` where it was a plain one."""

    messages: Sequence[Mapping[str, Any]]
    text: str | None = None

    @property
    def key(self) -> str:
        """What tells it from other prompts."""
        return key_of(self.messages, self.text)


@dataclass(frozen=True)
class Answer:
    """An answer and the model that gave it; several where they said the same."""

    text: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A prompt and the answers to it, in the order in which they are kept.

    `gold` has what is known of them beforehand: for each criterion (`""` for any) pairs of places, the better one
    first.
    """

    id: int
    source: Source
    asked: Asked
    answers: tuple[Answer, ...]
    gold: Mapping[str, Sequence[tuple[int, int]]] | None = None


@dataclass(frozen=True)
class Ranking:
    """What a person said of a task under a criterion.

    `ranks` has a rank for each answer as they are kept, 1 for the best, equal where they are equally good, and is
    None where nothing was ranked.
    """

    task: int
    annotator: str
    criterion: str
    verdict: Verdict
    ranks: tuple[int, ...] | None = None
    comment: str = ""
    when: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Thumb:
    """A person found an answer good, or bad."""

    task: int
    annotator: str
    is_good: bool
    when: str = ""


def key_of(*parts: Any) -> str:
    """Return a text that is the same for the same parts alone."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


def dense(marks: Sequence[float]) -> tuple[int, ...]:
    """Return ranks without gaps for places, the lowest first: (1, 3, 3) gives (1, 2, 2)."""
    place = {mark: rank for rank, mark in enumerate(sorted(set(marks)), 1)}
    return tuple(place[mark] for mark in marks)
