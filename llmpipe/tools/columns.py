"""A table as `read_file` sees it: what its columns hold, and its rows."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from datetime import date
from io import StringIO

from llmpipe.errors import TalkError
from llmpipe.tools.document import Document, decoded
from llmpipe.tools.fence import one_line, plain

MOST_COLUMNS = 60
"""How many columns are told of."""
DISTINCT = 6
"""A column of words with no more than so many is told by them."""
SEPARATORS = ",;\t|"
WHOLE = re.compile(r"[+-]?\d{1,18}")
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
TRUTHS = {"true", "false", "yes", "no"}


def table(data: bytes, name: str) -> Document:
    """Read a table whose first line names the columns.

    Raises:
        TalkError: it is no table.
    """
    content = decoded(data, name)
    separator = _separator(content)
    try:
        # Without strict, a quote that is never closed would swallow the rest of the file into one cell.
        rows = [row for row in csv.reader(StringIO(content), delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise TalkError(f"{name} is no table: {error}") from error
    if not rows:
        raise TalkError(f"{name} is empty")
    header, body = [one_line(cell, 60) for cell in rows[0]], rows[1:]
    uneven = sum(len(row) != len(header) for row in body)
    about = [
        f"{name}: {len(body):,} rows, {len(header)} columns"
        + (f"; {uneven:,} rows have another number of cells" if uneven else ""),
        *(_told(column, [row[at] if at < len(row) else "" for row in body]) for at, column in _first(header)),
    ]
    if len(header) > MOST_COLUMNS:
        about.append(f"and {len(header) - MOST_COLUMNS} more columns")
    lines = [_written(row) for row in body]
    return Document("row", lines, "\n".join(about), heading=_written(header))


def _first(header: Sequence[str]) -> list[tuple[int, str]]:
    return list(enumerate(header))[:MOST_COLUMNS]


def _separator(content: str) -> str:
    """Return the separator that stands most often in the first line, outside of quotes; a comma if none does."""
    line = re.sub(r'"[^"]*"', "", content[:10_000].partition("\n")[0])
    return max(SEPARATORS, key=line.count)


def _told(column: str, cells: Sequence[str]) -> str:
    """Return what a column holds: `price: decimal numbers, 0.5 to 12, mean 3.25; 2 empty`."""
    values = [cell.strip() for cell in cells if cell.strip()]
    empty = f"; {len(cells) - len(values):,} empty" if len(values) < len(cells) else ""
    return f"- {column or '(no name)'}: {_range(values)}{empty}"


def _range(values: Sequence[str]) -> str:
    if not values:
        return "nothing"
    if all(map(WHOLE.fullmatch, values)):
        whole = [int(value) for value in values]
        return f"whole numbers, {min(whole)} to {max(whole)}, mean {sum(whole) / len(whole):.6g}"
    if all(map(DECIMAL.fullmatch, values)):
        numbers = [float(value) for value in values]
        return f"decimal numbers, {min(numbers):g} to {max(numbers):g}, mean {math.fsum(numbers) / len(numbers):.6g}"
    if all(map(_is_date, values)):
        return f"dates, {min(values)} to {max(values)}"
    known = sorted(set(values))
    kind = "yes or no" if {value.lower() for value in known} <= TRUTHS else "text"
    if len(known) <= DISTINCT:
        return f"{kind}, " + ", ".join(f"{one_line(value, 40)} ({values.count(value):,})" for value in known)
    return f"{kind}, {len(known):,} different, such as {one_line(values[0], 60)}"


def _is_date(value: str) -> bool:
    try:
        date.fromisoformat(value[:10])
    except ValueError:
        return False
    return True


def _written(row: Sequence[str]) -> str:
    """Write a row as one line of a table with commas."""
    out = StringIO()
    csv.writer(out, lineterminator="").writerow([" ".join(plain(cell).split()) for cell in row])
    return out.getvalue()
