"""Processes that work on parts of a corpus; results come back in order, and only a few parts are under way at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from types import TracebackType
from typing import TypeVar

from llmpipe.errors import StageError

Part = TypeVar("Part")
Done = TypeVar("Done")

FEW = 6
"""So few parts are done here: they take less time than processes need to start."""


class Crew:
    """Up to `processes` processes, started when there is work for them; with one, the work is done in this process."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[Part], Done], parts: Iterable[Part]) -> Iterator[Done]:
        """Yield what `work`, a function by name, makes of each part, in the order of the parts.

        Raises:
            StageError: a process was killed.
        """
        parts = iter(parts)
        first = list(islice(parts, FEW + 1))
        if self.processes == 1 or (len(first) <= FEW and self._pool is None):
            yield from map(work, chain(first, parts))
            return
        # Spawned, for this process has threads, which a fork would leave behind with their locks held.
        self._pool = self._pool or ProcessPoolExecutor(
            self.processes, mp_context=multiprocessing.get_context("spawn"), initializer=_join_crew
        )
        under_way: deque[Future[Done]] = deque()
        try:
            for part in chain(first, parts):
                under_way.append(self._pool.submit(work, part))
                if len(under_way) > 2 * self.processes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            message = "one of its processes was killed; the system does that when memory runs out"
            raise StageError(message, hint="set `processes:` of the stage to a lower number") from None


def _join_crew() -> None:
    """Leave Ctrl-C to the process that started this one, and end with it, however it ends."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process for each core; torch reads it at its import
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
