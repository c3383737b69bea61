"""Turn rows into texts with the class that each belongs to, for a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llmpipe.data import Cells, Problems, Row, kind, tables
from llmpipe.data.tables import Format, Table
from llmpipe.errors import DataError, UsageError, did_you_mean

MOST_CLASSES_PER_ROW = 0.5
"""Above this, what is taken for a label is something else, such as a name or a number for each row."""

ALONE = "a classifier tells two classes or more apart"


@dataclass(frozen=True, slots=True)
class Classed:
    """A text and its class, as it is written in the data; `2` and `true` become text."""

    text: str
    label: str

    @property
    def asked(self) -> str:
        """What decides on which side of a split it falls."""
        return self.text


def classed(
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    problems: Problems | None = None,
) -> Iterator[tuple[Row, Classed]]:
    """Yield each good row with its text and label, then raise all problems.

    Raises:
        DataError: with the problems of all rows; at once for a first row without these columns.
    """
    return tables.converted(rows, Table(CLASSED), columns=columns, format=format, problems=problems)


def _convert(cells: Cells) -> Classed:
    return Classed(cells.text("text"), _label(cells))


def _label(cells: Cells) -> str:
    """Return a label as text; whole numbers, true and false are labels, too."""
    value = cells.value["label"]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return cells.text("label").strip()
    cells.wrong.append(f"{cells.name('label')} is {kind(value)}, not text or a whole number")
    return ""


CLASSED: dict[str, Format[Classed]] = {
    "text-label": Format(("text", "label"), (), "a text and the class that it belongs to", _convert)
}


def classes_of(found: Iterable[Classed], names: Mapping[str, str] | None) -> tuple[dict[str, int], list[str]]:
    """Return the class of each label in the data, and the names of the classes.

    Numbers come in their own order, other labels in that of the alphabet. `names` renames labels; those of one name
    become one class.

    Raises:
        DataError: there is one class alone, or nearly as many as rows.
        UsageError: `names` names a label that the data do not have, or leaves one out.
    """
    labels = [one.label for one in found]
    seen = sorted(set(labels), key=lambda label: (0, int(label), "") if _is_number(label) else (1, 0, label))
    hint = "say which column is which: columns: {text: YOURS, label: YOURS}"
    if len(seen) < 2:
        raise DataError(f"every row has the label {seen[0]!r}; {ALONE}", hint=hint)
    if len(seen) > max(2, MOST_CLASSES_PER_ROW * len(labels)):
        raise DataError(f"{len(labels):,} rows have {len(seen):,} different labels; those are no classes", hint=hint)
    if names is not None:
        _check_names(names, seen)
    named = {label: (names or {}).get(label, label) for label in seen}
    classes = list(dict.fromkeys(named.values()))
    if len(classes) < 2:
        raise DataError(f"`labels` makes one class of all rows, {classes[0]!r}; {ALONE}")
    return {label: classes.index(name) for label, name in named.items()}, classes


def _is_number(label: str) -> bool:
    return label.isascii() and label.removeprefix("-").isdigit()


def _check_names(names: Mapping[str, str], seen: list[str]) -> None:
    for label in names:
        if label not in seen:
            near = did_you_mean(label, seen) or f"; there are {', '.join(seen)}"
            raise UsageError(f"labels: no row has the label {label!r}{near}")
    if missing := [label for label in seen if label not in names]:
        raise UsageError(
            f"labels: the rows also have {', '.join(map(repr, missing))}", hint="name all of them, or leave out labels"
        )
