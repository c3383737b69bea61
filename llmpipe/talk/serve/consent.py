"""The tools of the server: what was allowed in each conversation, and questions that wait for somebody at the page."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable
from typing import Any

from llmpipe.talk.deep_search import READ, SEARCH
from llmpipe.talk.kit import Answer, Asks, Kit, Wish

CONSENT_S = 120.0
"""How long a question waits; then the answer is no."""
LOOK_S = 0.1


class Desk:
    """Gives each conversation its kit, and asks its user. All methods may be called from several threads at once."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._allowed: dict[int, set[str]] = {}
        self._waiting: dict[str, queue.SimpleQueue[Answer]] = {}

    @property
    def searches(self) -> bool:
        """Whether there is what deep-search needs."""
        return {SEARCH, READ} <= self._kit.on

    def kit(self, conversation: int | None, asks: Asks) -> Kit:
        """Return the kit of a conversation; one that nobody keeps is asked each time."""
        kit = self._kit.afresh()
        kit.asks = asks
        if conversation is not None:
            kit.allowed = self._allowed.setdefault(conversation, kit.allowed)
        return kit

    def ask(self, wish: Wish, tell: Callable[[dict[str, Any]], None], is_over: Callable[[], bool]) -> Answer:
        """Have the page ask, and wait for what it says; no if it says nothing, or the answer is over."""
        number = secrets.token_urlsafe(16)
        waiting = self._waiting[number] = queue.SimpleQueue()
        end = time.monotonic() + CONSENT_S
        tell({"ask": number, "tool": wish.tool, "arguments": wish.arguments, "why": wish.why})
        said: Answer = "no"
        try:
            while time.monotonic() < end and not is_over():
                try:
                    said = waiting.get(timeout=LOOK_S)
                    break
                except queue.Empty:
                    continue
        finally:
            del self._waiting[number]
        tell({"asked": number, "answer": said})
        return said

    def answer(self, number: str, said: Answer) -> bool:
        """Answer a question; returns whether it still waits."""
        waiting = self._waiting.get(number)
        if waiting is not None:
            waiting.put(said)
        return waiting is not None
