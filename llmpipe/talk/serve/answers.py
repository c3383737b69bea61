"""Engines answer in threads of their own, at most so many at once; the server reads them without blocking.

async with aclosing(answers.of(lambda: engine.chat(messages, how))) as pieces:
    async for piece in pieces: ...
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from llmpipe.errors import TalkError

Part = TypeVar("Part")
ENDING = "the server is shutting down"


@dataclass(eq=False)
class _Wish:
    """That an answer ends; a plain flag, so that a signal handler may set it."""

    _is_made: bool = False

    def make(self) -> None:
        self._is_made = True

    def is_made(self) -> bool:
        return self._is_made


class Answers:
    """The answers under way; one that nobody reads any more is stopped at its next part."""

    def __init__(self, running: int) -> None:
        self._pool = ThreadPoolExecutor(running, thread_name_prefix="answer")
        self._lock = threading.Lock()
        self._under_way: set[_Wish] = set()
        self.is_ending = False
        self.queued = 0
        self.running = 0

    async def of(self, begin: Callable[[], Iterator[Part]]) -> AsyncGenerator[Part, None]:
        """Yield what an iterator yields that is made and read in a thread.

        Raises:
            TalkError: the server ends; else whatever making and reading the iterator raise.
        """
        loop, stop = asyncio.get_running_loop(), _Wish()
        told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def tell(what: str, content: Any = None) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody reads any more
                loop.call_soon_threadsafe(told.put_nowait, (what, content))

        if self.is_ending:
            raise TalkError(ENDING)
        self._count(queued=1)
        self._under_way.add(stop)
        job = self._pool.submit(self._read, begin, stop, tell)
        try:
            while (event := await told.get())[0] == "part":
                yield event[1]
            if event[0] == "failed":
                raise event[1]
        finally:
            stop.make()
            self._under_way.discard(stop)
            if job.cancel():
                self._count(queued=-1)

    def _read(self, begin: Callable[[], Iterator[Part]], stop: _Wish, tell: Callable[..., None]) -> None:
        self._count(queued=-1, running=1)
        parts: Iterator[Part] | None = None
        try:
            if not stop.is_made():
                parts = begin()
                for part in parts:
                    tell("part", part)
                    if stop.is_made():
                        break
            if self.is_ending and stop.is_made():
                raise TalkError(ENDING)
        except BaseException as failure:  # it goes on in the coroutine that waits
            tell("failed", failure)
        else:
            tell("end")
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()
            self._count(running=-1)

    def _count(self, *, queued: int = 0, running: int = 0) -> None:
        with self._lock:
            self.queued += queued
            self.running += running

    def stop(self) -> None:
        """Stop all that is under way, each at its next part, and begin nothing more."""
        self.is_ending = True
        for stop in list(self._under_way):
            stop.make()

    def close(self) -> None:
        """Give the threads back."""
        self.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
