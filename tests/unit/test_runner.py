"""Signals while a worker is being made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmpipe import launch, runner
from llmpipe.errors import ExitCode, StoppedError


class Made:
    """A worker that knows whether it was killed."""

    killed = False

    def kill(self) -> None:
        self.killed = True


def test_a_signal_while_a_worker_is_made_waits_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised at once, it would leave a child with half a message, which prints a traceback over the terminal."""
    stop, made = runner._Stop(in_process=False), Made()

    def start(*_: Any, **__: Any) -> Made:
        stop("interrupt")
        return made

    monkeypatch.setattr(launch, "start", start)
    with pytest.raises(StoppedError, match="stopped at once") as stopped:
        runner._started(Path("run"), "base", runner.Options(), stop)
    assert made.killed and stopped.value.code == ExitCode.INTERRUPTED
    with pytest.raises(StoppedError):  # and no longer, where none is being made
        stop("interrupt")
