"""Everything that can go wrong for a user, and the exit code each failure has.

A user's mistake is a `Problem`: where it is, what is wrong, what to type instead. Checks collect all of their
problems and raise them together, so that one pass shows everything there is to mend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees. The numbers are public: CI scripts branch on them (docs/ci.md)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    GATE = 3
    DIVERGED = 4
    DATA = 5
    LOCKED = 6
    PREEMPTED = 75
    INTERRUPTED = 130


@dataclass(frozen=True)
class Problem:
    """One thing to mend.

    `where` is `file:line` or `file:line:column`, `path` the dotted key of a recipe, `excerpt` the offending line
    with a caret line below it.
    """

    message: str
    where: str | None = None
    path: str | None = None
    excerpt: tuple[str, str] | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class LlmpipeError(Exception):
    """Base of all errors that are shown without a traceback.

    `code` is the process's exit code, `problems` all that was found in one pass, `hint` the command or the edit
    that helps.
    """

    code = ExitCode.FAILED

    def __init__(self, problems: str | Problem | Sequence[Problem], *, hint: str | None = None) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.hint = hint
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[LlmpipeError], tuple[tuple[Problem, ...]], dict[str, str | None]]:
        """Keep the keyword-only hint when the error crosses from a worker process."""
        return type(self), (self.problems,), {"hint": self.hint}


class StageError(LlmpipeError):
    """A stage could not finish."""


class TalkError(LlmpipeError):
    """A model that is talked to cannot answer."""


class UsageError(LlmpipeError):
    """The command line asks for something that cannot be."""

    code = ExitCode.USAGE


class RecipeError(UsageError):
    """The recipe is not valid; nothing was run."""


class DivergedError(LlmpipeError):
    """A loss or a gradient became infinite or not a number."""

    code = ExitCode.DIVERGED


class DataError(LlmpipeError):
    """The data cannot be used as it is."""

    code = ExitCode.DATA


class LockedError(LlmpipeError):
    """Another process works in the run directory."""

    code = ExitCode.LOCKED


class StoppedError(LlmpipeError):
    """A signal asked the run to stop; it can be resumed by the same command."""

    def __init__(
        self, problems: str | Problem | Sequence[Problem], *, hint: str | None = None, interrupted: bool = True
    ) -> None:
        super().__init__(problems, hint=hint)
        self.code = ExitCode.INTERRUPTED if interrupted else ExitCode.PREEMPTED

    def __reduce__(self):  # type: ignore[no-untyped-def]
        """Keep the code too when the error crosses from a worker process."""
        return type(self), (self.problems,), {"hint": self.hint, "code": self.code}


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return `", did you mean X?"` for the nearest known word, or an empty string."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""
