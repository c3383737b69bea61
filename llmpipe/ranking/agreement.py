"""What people's rankings have in common: agreement, gold questions, and which model's answers they prefer.

Agreement is that of the pairs, for pairs are what a reward model learns from: of any two answers one is better (1), the
other is (-1), or neither (0), in this order, so that a tie is nearer to both than they are to each other. Each pair
is counted both ways round, so that it does not matter which answer is called the first. Where all are bad, all are
tied. Gold questions are left out: they are chosen to be easy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from llmpipe.ranking import alpha
from llmpipe.ranking.records import Ranking, Task


@dataclass
class Tried:
    """An annotator's gold questions: how many pairs were asked, and how many the annotator saw as they are known."""

    right: int = 0
    asked: int = 0

    @property
    def share(self) -> float | None:
        """How many were right; None where nothing was asked."""
        return self.right / self.asked if self.asked else None


def preferred(ranking: Ranking, count: int) -> dict[tuple[int, int], int]:
    """Return for every two of `count` answers whether the first is better: 1, 0 or -1; nothing where it was skipped."""
    if ranking.verdict == "skipped":
        return {}
    ranks = ranking.ranks or (1,) * count
    return {(i, j): (ranks[i] < ranks[j]) - (ranks[i] > ranks[j]) for i, j in combinations(range(count), 2)}


def units(tasks: Mapping[int, Task], rankings: Iterable[Ranking]) -> list[list[int]]:
    """Return for every two answers what each annotator said of them, then the same the other way round."""
    said: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
    for ranking in rankings:
        task = tasks[ranking.task]
        if task.gold is None:
            for (i, j), better in preferred(ranking, len(task.answers)).items():
                said[task.id, i, j].append(better)
    return [*said.values(), *([-better for better in values] for values in said.values())]


def agreement(tasks: Mapping[int, Task], rankings: Sequence[Ranking], criterion: str) -> float | None:
    """Return Krippendorff's alpha of what people said under a criterion; None where no two of them ranked the same."""
    return alpha.ordinal(units(tasks, (one for one in rankings if one.criterion == criterion)))


def tried(tasks: Mapping[int, Task], rankings: Iterable[Ranking]) -> dict[str, Tried]:
    """Return how each annotator did on gold questions.

    A tie misses what is known, and so does finding all of them bad; what was skipped was not asked.
    """
    found: defaultdict[str, Tried] = defaultdict(Tried)
    for ranking in rankings:
        task = tasks[ranking.task]
        if task.gold is None:
            continue
        better = preferred(ranking, len(task.answers))
        for i, j in (*task.gold.get("", ()), *task.gold.get(ranking.criterion, ())) if better else ():
            found[ranking.annotator].asked += 1
            found[ranking.annotator].right += (better[i, j] if i < j else -better[j, i]) == 1
    return dict(found)


def left_out(tasks: Mapping[int, Task], rankings: Sequence[Ranking], least: float) -> dict[str, float | None]:
    """Return the annotators who saw less than this share of gold as it is known, or were asked none of it."""
    known = tried(tasks, rankings)
    shares = {one.annotator: known.get(one.annotator, Tried()).share for one in rankings}
    return {name: share for name, share in shares.items() if share is None or share < least}


def wins(tasks: Mapping[int, Task], rankings: Iterable[Ranking]) -> dict[str, float]:
    """Return for each model the share of pairs with another model's answer that it won, a tie counting half."""
    won: defaultdict[str, float] = defaultdict(float)
    met: defaultdict[str, int] = defaultdict(int)
    for ranking in rankings:
        task = tasks[ranking.task]
        for pair, better in preferred(ranking, len(task.answers)).items():
            one, two = (set(task.answers[place].models) for place in pair)
            for own, other, points in ((one, two, better), (two, one, -better)):
                for name in own - other if other else ():
                    won[name] += (1 + points) / 2
                    met[name] += 1
    return {name: won[name] / met[name] for name in sorted(met)}
