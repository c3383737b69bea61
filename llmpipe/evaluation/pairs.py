"""How well rewards tell the better of two answers: accuracy with its interval, calibration, a liking for length."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

BINS = 10
Z95 = 1.959964
"""Deviations of a normal distribution that 95 % lies within."""


def measure(rewards: Sequence[tuple[float, float]], lengths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the measures of held-out pairs, from rewards and lengths in tokens of chosen and rejected answers.

    A tie counts as half a right answer. `longer_wins_share` is how often the model prefers the longer answer,
    `longer_chosen_share` how often the data do; both leave out pairs of one length.
    """
    margins = [chosen - rejected for chosen, rejected in rewards]
    every = [reward for both in rewards for reward in both]
    uneven = [
        (margin, chosen > rejected) for margin, (chosen, rejected) in zip(margins, lengths, strict=True)
        if chosen != rejected
    ]  # fmt: skip
    error, bins = calibration(margins)
    return {
        **accuracy(margins),
        "mean_margin": fmean(margins),
        "reward_mean": fmean(every),
        "reward_std": pstdev(every),
        "calibration_error": error,
        "calibration_bins": bins,
        "length_correlation": correlation(every, [length for both in lengths for length in both]),
        "longer_wins_share": _share([half(margin if longer else -margin) for margin, longer in uneven]),
        "longer_chosen_share": _share([float(longer) for _, longer in uneven]),
    }


def accuracy(margins: Sequence[float]) -> dict[str, Any]:
    """Return the share of pairs in which the chosen answer has the higher reward, and its 95 % interval."""
    right = sum(map(half, margins))
    return {
        "held_out_accuracy": right / len(margins),
        "held_out_accuracy_interval": list(wilson(right, len(margins))),
        "held_out_pairs": len(margins),
    }


def auc(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """Return how often a good answer has the higher reward than a bad one, a tie counting half; None without either.

    It is the area under the ROC curve (Mann and Whitney 1947, doi:10.1214/aoms/1177730491).
    """
    if not good or not bad:
        return None
    below = sorted(bad)
    wins = sum((bisect_left(below, reward) + bisect_right(below, reward)) / 2 for reward in good)
    return wins / (len(good) * len(bad))


def half(margin: float) -> float:
    """Return 1 for a margin above 0, 0 below, and half for a tie."""
    return (margin > 0) + (margin == 0) / 2


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    share, spread = successes / trials, Z95**2 / trials
    middle = share + spread / 2
    reach = Z95 * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, (middle - reach) / (1 + spread)), min(1.0, (middle + reach) / (1 + spread))


def calibration(margins: Sequence[float]) -> tuple[float, list[dict[str, float]]]:
    """Compare how sure a model is with how often it is right, in ten bins of equal width.

    It is as sure of the answer that it prefers as sigmoid(|margin|), from 0.5 to 1. The error is the mean gap, each
    bin weighed by its pairs (arXiv:1706.04599); empty bins are left out.
    """
    filled: dict[int, list[float]] = {}
    for margin in margins:
        filled.setdefault(min(BINS - 1, int((_sure(margin) - 0.5) * 2 * BINS)), []).append(margin)
    bins = [
        {
            "from": 0.5 + number / (2 * BINS),
            "to": 0.5 + (number + 1) / (2 * BINS),
            "pairs": len(found),
            "confidence": fmean(map(_sure, found)),
            "accuracy": fmean(map(half, found)),
        }
        for number, found in sorted(filled.items())
    ]
    gaps = (entry["pairs"] * abs(entry["confidence"] - entry["accuracy"]) for entry in bins)
    return sum(gaps) / len(margins), bins


def _sure(margin: float) -> float:
    return 1 / (1 + math.exp(-abs(margin)))


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Pearson's correlation; None where either does not vary."""
    try:
        return statistics.correlation(one, other)
    except statistics.StatisticsError:  # one of them is constant
        return None


def _share(wins: Sequence[float]) -> float | None:
    return fmean(wins) if wins else None
