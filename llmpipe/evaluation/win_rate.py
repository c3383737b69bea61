"""Which of two models answers better: a judge is asked about each question twice, the answers swapped.

Models that judge like the first answer or the second for its place alone (arXiv:2306.05685, section 3.3). Where the
two verdicts differ, the question is a tie, and a tie counts as half a win for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llmpipe.data.preferences import Prompt
from llmpipe.evaluation.generate import Told
from llmpipe.evaluation.pairs import wilson

Verdict = Literal["first", "second", "tie"]
MIRRORED: dict[Verdict, Verdict] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True)
class Duel:
    """Two answers to one question."""

    prompt: Prompt
    first: Told
    second: Told

    @property
    def swapped(self) -> Duel:
        """The same, the other way round."""
        return Duel(self.prompt, self.second, self.first)


class Judge(Protocol):
    """Something that says which of two answers is better."""

    name: str

    def verdicts(self, duels: Sequence[Duel]) -> list[Verdict | None]:
        """Return which answer of each duel is better; None where the judge says nothing that can be used."""
        ...


@dataclass(frozen=True)
class Standing:
    """How often the first answers won, lost and drew; `unjudged` are left out of all shares."""

    wins: int
    losses: int
    ties: int
    unjudged: int

    @property
    def judged(self) -> int:
        """Questions with a verdict."""
        return self.wins + self.losses + self.ties

    @property
    def win_rate(self) -> float:
        """Share of questions that were won; a tie is half a win."""
        return (self.wins + self.ties / 2) / self.judged

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval of the win rate; too wide rather than too narrow where there are ties."""
        return wilson(self.wins + self.ties / 2, self.judged)


def judge_both_ways(judge: Judge, duels: Sequence[Duel]) -> list[Verdict | None]:
    """Return a verdict for each duel that does not depend on which answer stands first.

    Two answers of one text are a tie without being asked about.
    """
    found: list[Verdict | None] = ["tie"] * len(duels)
    open_ones = [place for place, duel in enumerate(duels) if duel.first.text != duel.second.text]
    asked = [duels[place] for place in open_ones]
    as_they_stand = judge.verdicts(asked)
    swapped = judge.verdicts([duel.swapped for duel in asked])
    for place, one, other in zip(open_ones, as_they_stand, swapped, strict=True):
        if one is None or other is None:
            found[place] = None
        else:
            found[place] = one if MIRRORED[other] == one else "tie"
    return found


def standing(verdicts: Sequence[Verdict | None]) -> Standing:
    """Count verdicts."""
    return Standing(*(verdicts.count(which) for which in ("first", "second", "tie", None)))
