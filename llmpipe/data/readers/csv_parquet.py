"""Tables: csv, tsv and parquet, a row of the table a row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import import_module
from io import BufferedReader

from llmpipe.data import BadRow, Row, repeats
from llmpipe.data.readers import checked, lines
from llmpipe.errors import Problem

BATCH_ROWS = 1024  # pyarrow's own 65,536 documents at once may be gigabytes


def table(file: BufferedReader, name: str, *, delimiter: str) -> Iterator[Row | Problem]:
    """Yield the rows of a table in text; its first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # the default refuses cells above 128 KiB, and documents are longer
    bad: list[Problem] = []

    def feed() -> Iterator[str]:
        for _, text, problem in lines(file, name):
            bad.extend([problem] if problem else [])
            yield text

    # Without strict, a quote that is never closed would swallow the rest of the file into one cell.
    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        where = f"{name}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cells = []
            bad.append(Problem(f"the quotes in this row do not match ({error})", where))
        if cells and not bad and not header:
            header = cells
            bad.extend(Problem(f"the header names {column!r} twice", where) for column in repeats(header))
        elif cells and not bad and len(cells) != len(header):
            what = f"this row has {len(cells)} cells and the header {len(header)}"
            what = f"{what}; put quotes around cells that hold the separator or a line break"
            yield BadRow(what, where, raw=cells)
        elif cells and not bad:
            yield checked(dict(zip(header, cells, strict=True)), where)
        yield from bad
        # Below a bad header no cell can be told by its column.
        if cells is None or (bad and (not header or header is cells)):
            return
        bad.clear()


def parquet(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """Yield the rows of a parquet file, a batch at a time in memory."""
    try:
        arrow, reader = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        yield Problem("reading parquet needs pyarrow; run: pip install pyarrow", name)
        return
    number = 0
    try:
        data = reader.ParquetFile(file)
        if twice := repeats(data.schema_arrow.names):
            yield Problem(f"there are two columns {twice[0]!r}; rename one", name)
            return
        for batch in data.iter_batches(batch_size=BATCH_ROWS):
            for value in batch.to_pylist():
                number += 1
                yield checked(value, f"{name}: row {number}")
    except (arrow.lib.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        yield Problem(f"the parquet data cannot be read after row {number} ({reason!a})", name)
