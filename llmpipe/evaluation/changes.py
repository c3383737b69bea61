"""What changed from one model to the next, on the same texts and prompts: differences with intervals.

The items are paired: what is drawn anew is which of them there are, for both models at once, so that how hard an item
is cancels out (Koehn 2004, aclanthology.org/W04-3250).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmpipe.context import Context
from llmpipe.settings import AnySource, StageSource

Floats = NDArray[np.float64]

DRAWS = 1000
MOST_BLOCKS = 1000
"""Items beyond that are added up in blocks first: their sums say as much, and the draws stay quick."""
FEWEST = 10
"""Items for an interval; of fewer, the draws know too little of what else there might be."""


@dataclass(frozen=True)
class Items:
    """A metric by items: `figure` of the sum of `tops` over the sum of `bottoms`."""

    tops: Sequence[float]
    bottoms: Sequence[float]
    figure: Callable[[Floats], Floats] = lambda ratio: ratio


def share(values: Sequence[bool]) -> Items:
    """Return the items of a share."""
    return Items([float(value) for value in values], [1.0] * len(values))


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> Items:
    """Return the items of a perplexity, by text."""
    return Items(nats, tokens, lambda ratio: np.exp(np.minimum(ratio, 700.0)))


def bits_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> Items:
    """Return the items of bits per byte, by text."""
    return Items(nats, sizes, lambda ratio: ratio / math.log(2))


def change(before: Items, after: Items, *, seed: int) -> dict[str, Any]:
    """Compare two models on the items that both have: the figures, their difference, and its 95 % interval.

    The interval is that of the percentiles of bootstrap draws (Efron and Tibshirani 1993, chapter 13); None where
    there are fewer than `FEWEST` items.
    """
    items = min(len(before.tops), len(after.tops))
    sums = np.array([side[:items] for one in (before, after) for side in (one.tops, one.bottoms)], dtype=np.float64)
    whole = _figures(before, after, sums.sum(axis=1, keepdims=True))
    interval = None
    if items >= FEWEST:
        blocks = np.add.reduceat(
            sums, np.linspace(0, items, min(items, MOST_BLOCKS), endpoint=False, dtype=int), axis=1
        )
        count = blocks.shape[1]
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
        olds, news = _figures(before, after, blocks @ drawn.T)
        interval = [float(edge) for edge in np.quantile(news - olds, [0.025, 0.975])]
    old, new = (float(side[0]) for side in whole)
    return {"before": old, "after": new, "change": new - old, "interval": interval, "items": items}


def _figures(before: Items, after: Items, sums: Floats) -> tuple[Floats, Floats]:
    """Return both models' figures from (4, draws): the tops and bottoms of the one, then of the other."""
    return before.figure(sums[0] / sums[1]), after.figure(sums[2] / sums[3])


def steps(sources: Sequence[AnySource], names: Sequence[str], ctx: Context) -> list[tuple[str, str]]:
    """Pair each model with the one that it began from, or, where that one is not measured, with the one before it."""
    known = {source.stage: name for source, name in zip(sources, names, strict=True) if isinstance(source, StageSource)}
    found = []
    for place, (source, name) in enumerate(zip(sources, names, strict=True)):
        inputs = ctx.manifest_of(source.stage).inputs if isinstance(source, StageSource) else []
        began = [entry.source["stage"] for entry in inputs if entry.field == "model" and "stage" in entry.source]
        before = [known[stage] for stage in began if stage in known] or names[max(0, place - 1) : place]
        found += [(old, name) for old in before]
    return found


def table(
    measured: Mapping[str, Mapping[str, Any]],
    items: Mapping[str, Mapping[str, Items]],
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """List what changed between the models of each pair, metric by metric: with intervals where there are items."""
    rows = []
    for old, new in pairs:
        for metric, after in measured[new].items():
            before = measured[old].get(metric)
            if metric.endswith("_stderr"):
                continue  # belongs to the figure of the same name without it
            if metric in items.get(old, {}) and metric in items.get(new, {}):
                found = change(items[old][metric], items[new][metric], seed=seed)
            elif isinstance(before, float) and isinstance(after, float):
                found = {"before": before, "after": after, "change": after - before, "interval": None, "items": None}
            else:
                continue
            rows.append({"from": old, "to": new, "metric": metric, **found})
    return rows
