"""Read rows by a table of formats: the format is told from the columns of the first row, or given.

`formats` has the table of conversations, `preferences` those of pairs and of prompts. One pass shows every problem
of every row, with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Generic, TypeVar

from llmpipe.data import Cells, Problems, Row
from llmpipe.errors import DataError, Problem, UsageError, did_you_mean

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Format(Generic[Item]):
    """A row format: the columns it needs, those it also reads, and its converter."""

    needs: tuple[str, ...]
    also: tuple[str, ...]
    about: str
    convert: Callable[[Cells], Item]


@dataclass(frozen=True, slots=True)
class Table(Generic[Item]):
    """Formats by name, as they are tried and help lists them.

    `refusal` says what is wrong with a first row that is another kind of data, which a format may fit by chance;
    a format that the user names is not questioned.
    """

    formats: Mapping[str, Format[Item]]
    refusal: Callable[[Mapping[str, object]], str | None] = lambda _: None
    hint: str | None = None


def detect(value: Mapping[str, object], table: Table[Item], *, where: str) -> str:
    """Return the name of the format with these columns; of several, the one that needs most of them."""
    refusal = table.refusal(value)
    if refusal:
        raise DataError(Problem(refusal, where), hint=table.hint)
    found = _fitting(value, table)
    if found:
        return found
    lines = [f"no format fits the columns {', '.join(value) or '(none)'}; one of these is needed:"]
    for name, form in table.formats.items():
        spare = [column for column in value if column not in form.needs]
        missing = [need for need in form.needs if need not in value]
        near = [f" (is {got} {need}?)" for need in missing for got in get_close_matches(need, spare, 1, 0.75)]
        lines.append(f"  {name}: {', '.join(form.needs)}{''.join(near)}")
    raise DataError(Problem("\n".join(lines), where), hint="say which column is which with `columns`")


def format_of(row: Row, table: Table[Item], columns: Mapping[str, str]) -> str:
    """Return the name of the format that `converted` reads rows by whose first one this is.

    Raises:
        DataError: if none fits.
    """
    unseen = {ours for ours, theirs in columns.items() if theirs not in row.value}
    return _detect_first(row, _renamed(row, columns), unseen, table)


def converted(
    rows: Iterable[Row],
    table: Table[Item],
    *,
    columns: Mapping[str, str] | None,
    format: str | None,
    problems: Problems | None = None,
) -> Iterator[tuple[Row, Item]]:
    """Yield each good row with what its format makes of it, then raise one DataError with the problems of all rows.

    `columns` gives the user's name for a column of ours. The format is told from the first row unless it is
    given; a first row that fits none is raised at once, for nothing after it could be read either. `problems`
    takes note of bad rows, and may have another way with them.
    """
    names = dict(columns or {})
    _check_choice(names, format, table)
    problems, unseen, empty = problems or Problems(), set(names), True
    for row in problems.watch(rows):
        empty = False
        unseen -= {ours for ours in unseen if names[ours] in row.value}
        cells = _renamed(row, names)
        try:
            format = format or _detect_first(row, cells, unseen, table)
        except DataError as error:
            problems.unfit(row, error)
            continue
        absent = [column for column in table.formats[format].needs if column not in cells.value]
        if absent:
            problems.reject(row, [_absence(absent, cells, row, format, table)])
            continue
        item = table.formats[format].convert(cells)
        if cells.wrong:
            problems.reject(row, cells.wrong)
        else:
            yield row, item
    if not empty:
        problems.add(*(Problem(f"no row has the column {names[o]!r}, meant as {o}") for o in sorted(unseen)))
    problems.raise_any()
    if empty:
        raise DataError("there are no rows to learn from")


def _check_choice(names: Mapping[str, str], format: str | None, table: Table[Item]) -> None:
    """Refuse a format, or a column to rename, that there is not."""
    if format is not None and format not in table.formats:
        near = did_you_mean(format, list(table.formats)) or f"; known are {', '.join(table.formats)}"
        raise UsageError(f"there is no format {format!r}{near}")
    forms = [table.formats[format]] if format else list(table.formats.values())
    known = sorted({column for form in forms for column in (*form.needs, *form.also)})
    wrong = [f"no format reads a column {n!r}{did_you_mean(n, known)}" for n in names if n not in known]
    if wrong:
        raise UsageError([*map(Problem, wrong)], hint="`columns` maps ours to yours, as in {instruction: question}")


def _renamed(row: Row, names: Mapping[str, str]) -> Cells:
    """Return the row under our names; a column of the user's that happens to have our name gives way."""
    kept = {name: cell for name, cell in row.value.items() if name not in names and name not in names.values()}
    return Cells(kept | {ours: row.value[theirs] for ours, theirs in names.items() if theirs in row.value}, names)


def _detect_first(row: Row, cells: Cells, unseen: Collection[str], table: Table[Item]) -> str:
    """Tell the format from the first row; where none fits, a renamed column that is missing is the cause."""
    missing = [cells.name(ours) for ours in sorted(unseen)] if not _fitting(cells.value, table) else []
    near = [f"there is no column {name!r}{did_you_mean(name, list(row.value))}" for name in missing]
    if near:
        raise DataError([Problem(what, row.where) for what in near])
    return detect(cells.value, table, where=row.where)


def _fitting(columns: Collection[str], table: Table[Item]) -> str | None:
    fits = [name for name, form in table.formats.items() if set(form.needs) <= set(columns)]
    return max(fits, key=lambda name: len(table.formats[name].needs), default=None)


def _absence(absent: list[str], cells: Cells, row: Row, format: str, table: Table[Item]) -> str:
    names = [cells.name(column) for column in absent]
    what = f"the column{'s' * (len(names) > 1)} {', '.join(map(repr, names))} {'are' if absent[1:] else 'is'}"
    other = _fitting(cells.value, table)
    near = f"; the row looks like {other}, not {format}" if other else did_you_mean(names[0], list(row.value))
    return f"{what} missing{near}"
