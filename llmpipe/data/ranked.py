"""Turn rows into what people said of answers: the pairs that a reward model would learn from, and ties besides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations

from llmpipe.data import Cells, Problems, Row, rankings, tables, user_words
from llmpipe.data.preferences import PREFERENCES, Preference, asked_in
from llmpipe.data.tables import Format, Table


@dataclass(frozen=True)
class Ranked:
    """Two answers to what was asked; `preference` is 1 where the first is better, 0 where they are equally good."""

    asked: str
    first: str
    second: str
    preference: int


def ranked(
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    problems: Problems | None = None,
) -> Iterator[tuple[Row, Ranked]]:
    """Yield every pair of answers that the rows compare; then raise all problems.

    Raises:
        DataError: with the problems of all rows. A list of answers needs scores, ranks or ratings: that its first one
            is the best is taken for granted of data to learn from, but not of answers that wait for a verdict.
    """
    for row, found in tables.converted(rows, Table(RANKED), columns=columns, format=format, problems=problems):
        yield from ((row, one) for one in found)


def _pairs(cells: Cells, *, form: Format[list[Preference]]) -> list[Ranked]:
    return [
        Ranked(one.asked, one.chosen[-1]["content"].strip(), one.rejected[-1]["content"].strip(), preference=1)
        for one in form.convert(cells)
    ]


def _lists(cells: Cells, *, form: Format[list[Preference]]) -> list[Ranked]:
    """Convert a list of answers; two of which neither is better are a tie."""
    better = _pairs(cells, form=form)
    if cells.wrong:
        return []
    listed = cells.value["answers"]
    assert isinstance(listed, list)
    scored = any(isinstance(answer, dict) and any(key in answer for key in rankings.SCORE_KEYS) for answer in listed)
    if not scored and all(cells.value.get(column) is None for column in rankings.JUDGED_BY):
        cells.wrong.append(f"nothing says which of {cells.name('answers')} is better; `ranks` would, such as [2, 1]")
        return []
    asked = user_words(asked_in(cells, asks=form.needs[:1]).messages)
    texts = [text.strip() for text in rankings.answer_texts(cells)]
    told = {frozenset((one.first, one.second)) for one in better}
    ties = [Ranked(asked, *pair, preference=0) for pair in combinations(texts, 2) if frozenset(pair) not in told]
    return [*better, *ties]


RANKED: dict[str, Format[list[Ranked]]] = {
    name: Format(form.needs, form.also, form.about, partial(_lists if "answers" in form.needs else _pairs, form=form))
    for name, form in PREFERENCES.items()
}
"""The formats of preferences, read for verdicts."""
