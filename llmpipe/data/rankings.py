"""Several answers to one prompt, compared by scores, ranks, ratings or their order: which is better than which.

Scores stand in a column or in the answers themselves (higher is better), ranks in a column (lower is better).
Ratings are scores by criterion: {"helpfulness": [4, 2], "safety": [1, 5]}.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TypeGuard

from llmpipe.data import Cells, kind

TEXT_KEYS = ("text", "body", "answer", "content")
SCORE_KEYS = ("score", "pm_score")
MOST = 1e300
JUDGED_BY = ("scores", "ranks", "ratings")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One answer is better than another; both are places in the list of answers."""

    better: int
    worse: int
    criterion: str | None = None
    margin: float | None = None


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a cell is a number that can be reckoned with: finite, and a whole one not beyond a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST


def no_number(name: str, value: object) -> str:
    """Say that a cell is not a number."""
    return f"{name} is {value if isinstance(value, float) else kind(value)}, not a number"


def answer_texts(cells: Cells) -> list[str]:
    """Return the texts of the answers column; what is wrong is noted in the cells."""
    listed, name, texts = cells.value["answers"], cells.name("answers"), []
    if not isinstance(listed, list):
        cells.wrong.append(f"{name} is {kind(listed)}, not a list of answers")
        return []
    for number, answer in enumerate(listed, 1):
        text = next((answer[key] for key in TEXT_KEYS if key in answer), None) if isinstance(answer, dict) else answer
        if isinstance(answer, dict) and set(TEXT_KEYS).isdisjoint(answer):
            cells.wrong.append(f"{name} {number} has no {', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}")
        elif not isinstance(text, str):
            cells.wrong.append(f"{name} {number} is {kind(text)}, not text")
        elif not text.strip():
            cells.wrong.append(f"{name} {number} is empty")
        else:
            texts.append(text)
    if len(listed) < 2:
        cells.wrong.append(f"{name} has {len(listed)} answer{'s' * (not listed)}; a pair needs two")
    return texts


def comparisons(cells: Cells, texts: list[str]) -> list[Comparison]:
    """Return every ordered pair of answers, better one first; equally good ones give none."""
    found = [
        # Upvotes and ranks are no measure of how much better; ratings on one scale are.
        Comparison(i, j, criterion, None if criterion is None else scores[i] - scores[j])
        for criterion, scores in _scores(cells, len(texts)).items()
        for i, j in permutations(range(len(texts)), 2)
        if scores[i] > scores[j]
    ]
    same = {tuple(sorted((f.better, f.worse))) for f in found if texts[f.better].strip() == texts[f.worse].strip()}
    for one, other in sorted(same):
        places = f"{cells.name('answers')} {one + 1} and {other + 1}"
        cells.wrong.append(f"{places} are the same, but one is said to be better")
    return found


def _scores(cells: Cells, count: int) -> dict[str | None, list[float]]:
    """Return what the answers are compared by, higher is better: under None, or by criterion."""
    given = [column for column in JUDGED_BY if cells.value.get(column) is not None]
    listed = cells.value["answers"]
    assert isinstance(listed, list)
    own = [
        next((answer[key] for key in SCORE_KEYS if key in answer), None)
        for answer in listed
        if isinstance(answer, dict)
    ]
    if len(given) > 1:
        cells.wrong.append(f"there are {' and '.join(map(cells.name, given))}; keep one")
        return {}
    if not given and any(score is not None for score in own):
        return {None: _numbers(cells, own, f"the score of {cells.name('answers')}", count)}
    if not given:
        return {None: [float(-place) for place in range(count)]}
    value, name = cells.value[given[0]], cells.name(given[0])
    if given != ["ratings"]:
        sign = -1 if given == ["ranks"] else 1
        return {None: [sign * number for number in _numbers(cells, value, name, count)]}
    if not isinstance(value, dict):
        cells.wrong.append(f"{name} is {kind(value)}, not an object with a list of numbers for each criterion")
        return {}
    # Columns of nested tables have every key in every row, with null where there is nothing.
    return {key: _numbers(cells, value[key], f"{name} {key}", count) for key in value if value[key] is not None}


def _numbers(cells: Cells, value: object, name: str, count: int) -> list[float]:
    """Return a number per answer; if anything is wrong it is noted, and all are equal."""
    wrong = len(cells.wrong)
    if not isinstance(value, list):
        cells.wrong.append(f"{name} is {kind(value)}, not a list of numbers")
        return [0.0] * count
    cells.wrong.extend(no_number(f"{name} {n}", v) for n, v in enumerate(value, 1) if not is_number(v))
    if len(value) != count:
        cells.wrong.append(f"{name}: {len(value)} for {count} answers")
    return [0.0] * count if len(cells.wrong) > wrong else [float(number) for number in value]
