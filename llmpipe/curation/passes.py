"""One pass over the documents, as each process works on it."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from llmpipe.curation import Document, Verdict, bias
from llmpipe.curation.tally import Tally
from llmpipe.settings import Strict

Item = tuple[Document, tuple[int, ...]]
"""A document, and the numbers of its units that repeat earlier ones."""
Count = Callable[[str], Counter[str]]
Mend = Callable[[list[str], list[tuple[int, ...]]], list[Verdict]]


@dataclass(frozen=True)
class Job:
    """What is to be done with each document of a pass."""

    steps: tuple[tuple[Any, Any], ...]
    """Settings of each step, with what it was given or has gathered, or None."""
    ahead: Any = None
    """The step that begins the next pass, or None."""
    counts_before: bool = False
    counts_after: bool = False
    """Whether mentions of people are counted in the texts as they come, or as they go."""

    def written(self, folder: Path) -> Path:
        """Put the job where processes find it; what was gathered is too much to send with each part."""
        path = folder / f"{uuid4().hex}.job"
        path.write_bytes(pickle.dumps(self))
        return path


@dataclass
class Done:
    """What became of the documents of a part."""

    tallies: list[Tally]
    documents_in: int
    documents: list[Document] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    keys: bytes = b""
    gathered: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)


def module_of(step: Strict) -> ModuleType:
    """Return the module of a step."""
    return import_module(type(step).__module__)


def is_compared(step: Strict) -> bool:
    """Tell whether a step compares texts with each other."""
    return "Comparison" in vars(module_of(step))


def is_gathered(step: Strict) -> bool:
    """Tell whether a step has to see the whole corpus first."""
    return "gather" in vars(module_of(step))


class Work:
    """A job, ready to be done."""

    def __init__(self, job: Job) -> None:
        self.names = [step.step for step, _ in job.steps]
        self.steps = [_mending(step, given) for step, given in job.steps]
        ahead = job.ahead
        self.keys: Callable[[str], list[bytes]] | None = (
            module_of(ahead).keys(ahead) if ahead is not None and is_compared(ahead) else None
        )
        self.gather: Count | None = module_of(ahead).gather(ahead) if ahead is not None and is_gathered(ahead) else None
        self.counts_before, self.counts_after = job.counts_before, job.counts_after

    def through(self, items: list[Item], tallies: list[Tally]) -> list[Document]:
        """Take documents through the steps; returns what is left of them, in order."""
        left, repeated = [document for document, _ in items], [units for _, units in items]
        for step, tally in zip(self.steps, tallies, strict=True):
            before, left = left, []
            for one, verdict in zip(before, step([one.text for one in before], repeated), strict=True):
                tally.note(one, verdict)
                left += [one if text == one.text else Document(text, one.where) for text in verdict.texts]
            repeated = [()] * len(left)  # only the first step of a pass compares texts
        return left


def _mending(step: Any, given: Any) -> Mend:
    """Build a step; those that do not compare texts know of no units."""
    module = module_of(step)
    if is_compared(step):
        compared: Callable[[str, tuple[int, ...]], Verdict] = module.build(step)
        return lambda texts, repeated: list(map(compared, texts, repeated))
    if given is not None and "build_for_many" in vars(module):
        many: Callable[[list[str]], list[Verdict]] = module.build_for_many(step, given)
        return lambda texts, _: many(texts)
    alone: Callable[[str], Verdict] = module.build(step) if given is None else module.build(step, given)
    return lambda texts, _: list(map(alone, texts))


@lru_cache(maxsize=1)
def _work(path: Path) -> Work:
    job: Job = pickle.loads(path.read_bytes())
    return Work(job)


def do(path: Path, items: list[Item]) -> Done:
    """Do the job of a file with some documents."""
    work = _work(path)
    done = Done([Tally(name) for name in work.names], len(items))
    keys: list[bytes] = []
    if work.counts_before:
        for document, _ in items:
            done.before.update(bias.count(document.text))
    for left in work.through(items, done.tallies):
        done.documents.append(left)
        found = work.keys(left.text) if work.keys else []
        keys += found
        done.units.append(len(found))
        if work.gather is not None:
            done.gathered.update(work.gather(left.text))
        if work.counts_after:
            done.after.update(bias.count(left.text))
    done.keys = b"".join(keys)
    return done
