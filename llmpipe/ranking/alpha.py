"""Krippendorff's alpha: by how much people agree beyond what chance would give them.

K. Krippendorff, Content Analysis, 4th ed. (2018), chapter 12; "Computing Krippendorff's Alpha-Reliability" (2011) has
the formula by the coincidences of values, the ordinal difference, and the example that the tests repeat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate


def ordinal(units: Iterable[Sequence[int]]) -> float | None:
    """Return alpha of ordered values; each unit has the values that people gave it, one for each who did.

    1 is full agreement, 0 what chance gives, less is worse than chance. None where no unit has two values, or all
    values are the same, so that there is nothing to agree about.
    """
    together: dict[tuple[int, int], float] = {}
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        for one, times in counts.items():
            for other, others in counts.items():
                pairs = times * (others - (one == other))
                together[one, other] = together.get((one, other), 0.0) + pairs / (len(values) - 1)
    values_known = sorted({value for pair in together for value in pair})
    totals = [sum(together.get((value, other), 0.0) for other in values_known) for value in values_known]
    difference = _ordinal_difference(totals)
    span = range(len(values_known))
    observed = sum(together.get((values_known[i], values_known[j]), 0.0) * difference[i][j] for i in span for j in span)
    expected = sum(totals[i] * totals[j] * difference[i][j] for i in span for j in span)
    return None if expected == 0 else 1 - (sum(totals) - 1) * observed / expected


def _ordinal_difference(totals: Sequence[float]) -> list[list[float]]:
    """Return the squared difference of any two values: how many values lie from one to the other, less half of both."""
    up_to = list(accumulate(totals, initial=0.0))
    span = range(len(totals))
    return [[(up_to[max(i, j) + 1] - up_to[min(i, j)] - (totals[i] + totals[j]) / 2) ** 2 for j in span] for i in span]
