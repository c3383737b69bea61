"""Chat templates, which come with models and are programs: rendered in transformers' sandbox, and for a time only.

The sandbox bounds a single loop and not the loops within loops, and nothing of jinja2 looks at a clock. A signal would
reach the main thread alone, and `serve` renders in others; to trace each line makes templates three times as slow. So
a thread looks once a second, and has the one that renders for too long raise an error.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateRuntimeError
from transformers import PreTrainedTokenizerBase as Tokenizer

LIMIT_S = 10.0
"""A conversation takes a millisecond."""
LOOK_EVERY_S = 1.0


class TemplateLimitError(TemplateRuntimeError):
    """A template takes too long."""

    def __init__(self) -> None:
        super().__init__(f"the template takes more than {LIMIT_S:.0f} s")


class _Watch:
    """Who renders since when, and the thread that looks at it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun: dict[int, float] = {}
        self.is_on = False

    def enter(self) -> None:
        """Note that this thread begins to render."""
        with self.lock:
            self.begun[threading.get_ident()] = time.monotonic()
            if not self.is_on:
                self.is_on = True
                threading.Thread(target=self._look, name="templates", daemon=True).start()

    def leave(self) -> None:
        """Note that it has ended; an error that has not come yet, for it came too late, is taken back."""
        with self.lock:
            if self.begun.pop(threading.get_ident(), None) is None:
                _raise_in(threading.get_ident(), None)

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            with self.lock:
                now = time.monotonic()
                for thread in [thread for thread, since in self.begun.items() if now - since > LIMIT_S]:
                    del self.begun[thread]
                    _raise_in(thread, TemplateLimitError)


def _raise_in(thread: int, error: type[Exception] | None) -> None:
    """Have another thread raise an error at its next line of Python; None takes it back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)


_watch = _Watch()


def _anew() -> None:
    """Begin anew in a forked process, where the thread that looks is not."""
    global _watch
    _watch = _Watch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


def apply(tokenizer: Tokenizer, conversation: Sequence[Any], **options: Any) -> Any:
    """Return what `tokenizer.apply_chat_template` does.

    Raises:
        TemplateError: the template refuses the conversation, tries to leave the sandbox or takes too long.
    """
    watch = _watch
    watch.enter()
    try:
        return tokenizer.apply_chat_template(conversation, **options)
    except RecursionError:
        raise TemplateRuntimeError("a macro of the template calls itself for ever") from None
    finally:
        watch.leave()
