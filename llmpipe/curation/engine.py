"""Takes documents through the steps: streamed, in several processes, with the same result whatever their number.

Steps that look at one text follow each other within a pass. One that compares texts, or has to see all of them first,
begins another pass: the documents so far wait on disk while it makes up its mind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llmpipe.curation import Document, bias
from llmpipe.curation.crew import Crew
from llmpipe.curation.passes import Done, Item, Job, do, is_compared, is_gathered, module_of
from llmpipe.curation.spool import Bits, Spool
from llmpipe.curation.tally import Tally
from llmpipe.settings import Strict

PART_CHARACTERS = 500_000
PART_DOCUMENTS = 2_000


@dataclass
class Account:
    """What a run came to; complete once its documents are used up."""

    tallies: list[Tally] = field(default_factory=list)
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)


@dataclass
class Engine:
    """Runs steps. Its files go into `folder`; `progress` hears `documents`, `of` (None: unknown) and `doing`."""

    folder: Path
    crew: Crew
    progress: Callable[..., None]
    given: Mapping[int, Any] = field(default_factory=dict)
    """What steps are given beside their settings, by their place in the list."""
    counts_people: bool = False
    """Whether mentions of people are counted, before the first step and after the last."""

    def run(self, documents: Iterable[Document], steps: list[Any], account: Account) -> Iterator[Document]:
        """Yield the documents that are left, in their order."""
        items: Iterable[Item] = ((document, ()) for document in documents)
        kept: Kept | None = None
        passes = cut(steps)
        for number, within in enumerate(passes, 1):
            ahead = passes[number][0] if number < len(passes) else None
            given = [self.given.get(len(account.tallies) + place) for place in range(len(within))]
            tallies = [Tally(step.step) for step in within]
            if kept is not None:
                tallies[0].told = kept.examples
                given[0] = kept.gathered if is_gathered(within[0]) else given[0]
            account.tallies += tallies
            counts = self.counts_people and number == 1, self.counts_people and ahead is None
            job = Job(tuple(zip(within, given, strict=True)), ahead, *counts)
            doing = f"pass {number} of {len(passes)}: {', '.join(step.step for step in within) or 'reading'}"
            done = self._each(job, items, account, tallies, doing, kept)
            if ahead is None:
                yield from (document for part in done for document in part.documents)
            else:
                following = Kept(self.folder / f"pass-{number}", ahead)
                for part in done:
                    following.take(part)
                self.progress(doing=f"{ahead.step}: comparing" if is_compared(ahead) else f"{ahead.step}: gathering")
                following.decide(self.crew)
            if kept is not None:
                kept.spool.remove()
            if ahead is not None:
                kept, items = following, following.items()

    def _each(
        self, job: Job, items: Iterable[Item], account: Account, tallies: list[Tally], doing: str, kept: Kept | None
    ) -> Iterator[Done]:
        """Have the crew do a job with all documents, and keep its account."""
        path = job.written(self.folder)
        of, seen = kept.spool.documents if kept else None, 0
        for done in self.crew.each(partial(do, path), parts(items)):
            for tally, more in zip(tallies, done.tallies, strict=True):
                tally.add(more)
            bias.add(account.before, done.before)
            bias.add(account.after, done.after)
            seen += done.documents_in
            self.progress(documents=seen, of=of, doing=doing)
            yield done


class Kept:
    """What lies between two passes: the documents, on disk, and what the step ahead makes of all of them."""

    def __init__(self, folder: Path, ahead: Strict) -> None:
        folder.mkdir(parents=True)
        self.spool = Spool(folder / "spool")
        self.gathered: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self._comparison = module_of(ahead).Comparison(ahead, folder / "keys") if is_compared(ahead) else None
        self._repeated: Bits | None = None

    def take(self, done: Done) -> None:
        """Keep further documents, and their keys or counters."""
        if self._comparison is not None and done.keys:
            self._comparison.add(done.keys, self.spool.units)
        self.gathered.update(done.gathered)
        for document, units in zip(done.documents, done.units, strict=True):
            self.spool.add(document, units)

    def decide(self, crew: Crew) -> None:
        """Compare, once all documents are there."""
        self.spool.close()
        if self._comparison is not None:
            self._repeated = self._comparison.repeats(self.spool, crew)
            self.examples = self._comparison.examples

    def items(self) -> Iterator[Item]:
        """Yield the documents with the numbers of their units that repeat."""
        unit = 0
        for document, units in self.spool:
            repeated = () if self._repeated is None else (n for n in range(units) if unit + n in self._repeated)
            yield document, tuple(repeated)
            unit += units


def cut(steps: list[Any]) -> list[list[Any]]:
    """Cut steps into passes; a step that compares texts or gathers from all of them begins one."""
    passes: list[list[Any]] = [[]]
    for step in steps:
        if is_compared(step) or is_gathered(step):
            passes.append([])
        passes[-1].append(step)
    return passes


def parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Cut documents into parts for the processes; no document is cut."""
    part: list[Item] = []
    characters = 0
    for item in items:
        part.append(item)
        characters += len(item[0].text)
        if characters >= PART_CHARACTERS or len(part) >= PART_DOCUMENTS:
            yield part
            part, characters = [], 0
    if part:
        yield part
