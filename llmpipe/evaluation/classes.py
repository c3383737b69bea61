"""How well a classifier tells classes apart: accuracy, precision, recall and F1 by class, and what it confuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def measure(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
    """Return the measures of predictions; `confusion` counts them, (true class, predicted class).

    macro_f1 is the mean F1 of the classes that were there or were predicted, each counting the same. Where a class was
    never predicted its precision counts as 0, and where it was not there, its recall.
    """
    by_class: dict[str, dict[str, float | int]] = {}
    for index, name in enumerate(names):
        right, rows, guesses = confusion[index][index], sum(confusion[index]), sum(row[index] for row in confusion)
        by_class[name] = {
            "rows": rows,
            "precision": right / guesses if guesses else 0.0,
            "recall": right / rows if rows else 0.0,
            "f1": 2 * right / (rows + guesses) if rows + guesses else 0.0,
        }
    met = [own["f1"] for index, own in enumerate(by_class.values()) if own["rows"] or any(r[index] for r in confusion)]
    return {
        "accuracy": sum(row[index] for index, row in enumerate(confusion)) / sum(map(sum, confusion)),
        "macro_f1": sum(met) / len(met),
        "by_class": by_class,
        "confusion": {name: dict(zip(names, row, strict=True)) for name, row in zip(names, confusion, strict=True)},
    }
