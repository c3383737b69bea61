"""Read data files row by row and name every bad row by file and line.

A reader yields a `Row` or a `Problem` for each row it meets, so a bad row hides neither the rows nor the
problems after it. `read_rows` passes the rows on and raises the problems of all files together at the end.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Any

from llmpipe.data import TOO_DEEP, Problems, Row, decode, flaw, kind, repeats
from llmpipe.errors import DataError, Problem, did_you_mean

__all__ = ["READERS", "Row", "expand", "read_rows", "shown"]

OWN_LISTS = {"messages", "conversations", "history", "prompt", "completion"}  # parts of one row, not rows
NOT_TEXT = {
    b"\x1f\x8b": "the file is gzip-compressed; let its name end in .gz",
    b"\xff\xfe": "the file is UTF-16; save it as UTF-8",
    b"\xfe\xff": "the file is UTF-16; save it as UTF-8",
    b"PK\x03\x04": "the file is a zip archive; unpack it first",
    b"PAR1": "the file is parquet; let its name end in .parquet",
}

Reader = Callable[[BufferedReader, str], Iterator[Row | Problem]]
Line = tuple[int, str, Problem | None]  # its number, its text with the line end, what is wrong with its bytes


def read_rows(paths: Sequence[Path], *, limit_problems: int = 20) -> Iterator[Row]:
    """Yield the good rows of all files in order, then raise one DataError with the problems of all files."""
    problems = Problems(limit_problems)
    for path in paths:
        for item in _read(path):
            if isinstance(item, Row):
                yield item
            else:
                problems.add(item)
    problems.raise_any()


def expand(pattern: str, *, base: Path) -> list[Path]:
    """Return the files that a path, a directory or a glob (`**` allowed) means below `base`, sorted.

    A directory means the files below it that can be read here; hidden ones are left out.
    """
    path = base / Path(pattern).expanduser()
    if path.is_dir():
        below = [path / name for name in glob.glob("**/*", root_dir=path, recursive=True)]
        found = [file for file in below if file.is_file() and _suffix(file) in READERS]
        what = f"no file in this directory can be read; known are {_known()}"
    else:
        # A file's own name comes before its reading as a pattern: "chat[1].jsonl" is a name that people have.
        names = glob.glob(str(Path(pattern).expanduser()), root_dir=base, recursive=True)
        found = [path] if path.exists() else [base / name for name in names if not (base / name).is_dir()]
        what = "no file matches this pattern" if glob.has_magic(pattern) else "no such file"
    if not found:
        raise DataError(Problem(what if path.is_dir() else what + _near(path), shown(path)))
    return sorted(found)


def shown(path: Path) -> str:
    """Return the path as messages name it: relative to the working directory where it lies below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _near(path: Path) -> str:
    """Suggest a name for the first part of the path that does not exist."""
    while not path.parent.exists():
        path = path.parent
    return did_you_mean(path.name, sorted(entry.name for entry in path.parent.glob("*")))


def _suffix(path: Path) -> str:
    return PurePath(path.name.lower().removesuffix(".gz")).suffix


def _known() -> str:
    return f"{', '.join(READERS)}, each also with .gz"


def _read(path: Path) -> Iterator[Row | Problem]:
    """Yield what is in one file, good and bad."""
    name, suffix = shown(path), _suffix(path)
    try:
        raw: Any = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb", buffering=0)
        with BufferedReader(raw) as file:
            head = file.peek(4)
            wrong = next((why for magic, why in NOT_TEXT.items() if head.startswith(magic)), None)
            if suffix not in READERS:
                wrong = f"files with the suffix {suffix!r} cannot be read; known are {_known()}"
            elif not head:
                wrong = "the file is empty"
            elif suffix == ".parquet" or wrong is None:
                wrong = "the file holds no data"
                for item in READERS[suffix](file, name):
                    wrong = None
                    yield item
            if wrong:
                yield Problem(wrong, name)
    except (OSError, EOFError, zlib.error) as error:
        yield Problem(_failure(path, error), name)


def _failure(path: Path, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return f"no such file{_near(path)}"
        case IsADirectoryError():
            return "this is a directory; name the files in it"
        case EOFError():
            return "the gzip data ends too early; was the file cut off?"
        case gzip.BadGzipFile() | zlib.error():
            return "this is not valid gzip data; pack the file again or drop .gz from its name"
    reason = str(getattr(error, "strerror", None) or error)
    return f"the file cannot be read: {reason[:1].lower()}{reason[1:]}"


def _lines(file: Iterable[bytes], name: str) -> Iterator[Line]:
    offset = 0
    for number, raw in enumerate(file, 1):
        body = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        problem = None
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            text = body.decode(errors="replace")
            at = offset + len(raw) - len(body) + error.start
            what = f"byte 0x{body[error.start]:02x} at offset {at} is not UTF-8; save the file as UTF-8"
            problem = Problem(what, f"{name}:{number}")
        yield number, text, problem
        offset += len(raw)


def _document(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """A text file is one document; its line ends become plain newlines, as Python reads text."""
    parts, good = [], True
    for number, text, problem in _lines(file, name):
        wrong = flaw(text)
        if problem or wrong:
            good = False
            yield problem or Problem(f"{wrong}", f"{name}:{number}")
        parts.append(text)
    whole = "".join(parts).replace("\r\n", "\n").replace("\r", "\n")
    if good and whole.strip():
        yield Row(f"{name}:1", {"text": whole})


def _table(file: BufferedReader, name: str, *, delimiter: str) -> Iterator[Row | Problem]:
    csv.field_size_limit(2**31 - 1)  # the default refuses cells above 128 KiB, and documents are longer
    bad: list[Problem] = []

    def feed() -> Iterator[str]:
        for _, text, problem in _lines(file, name):
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
            yield Problem(f"{what}; put quotes around cells that hold the separator or a line break", where)
        elif cells and not bad:
            yield _checked(dict(zip(header, cells, strict=True)), where)
        yield from bad
        # Below a bad header no cell can be told by its column.
        if cells is None or (bad and (not header or header is cells)):
            return
        bad.clear()


def _checked(value: object, where: str) -> Row | Problem:
    if not isinstance(value, dict):
        return Problem(f'this row is {kind(value)}; it must be an object such as {{"text": "..."}}', where)
    wrong = flaw(value)
    return Problem(wrong, where) if wrong else Row(where, value)


def _syntax(error: Exception, unit: str) -> str:
    """Say what is wrong with a line or a file that is not JSON."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if not isinstance(error, json.JSONDecodeError):
        return "there is a number with thousands of digits; write it as a string"  # which Python refuses
    rest = error.doc[error.pos :].strip()
    if error.msg.startswith("Unterminated string"):
        return f"the {unit} ends inside a string; was the file cut off?"
    if any(word.startswith(rest) for word in ("true", "false", "null")):
        return f"the {unit} ends before its last bracket is closed; was the file cut off?"
    if error.msg == "Extra data":
        return f"more follows the first value at column {error.colno}; put one object on each line"
    if error.msg.startswith("Invalid control character"):
        return f"there is a bare tab or line break in the text at column {error.colno}; write \\t or \\n"
    return f"this is not JSON at column {error.colno}: {error.msg[0].lower()}{error.msg[1:]}"


def _objects(lines: Iterable[Line], name: str) -> Iterator[Row | Problem]:
    """Yield the rows of lines that hold one object each."""
    for number, text, problem in lines:
        if problem:
            yield problem
        elif text.strip():
            try:
                yield _checked(decode(text.rstrip()), f"{name}:{number}")
            except (ValueError, RecursionError) as error:
                yield Problem(_syntax(error, "line"), f"{name}:{number}")


def _json_lines(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    return _objects(_lines(file, name), name)


def _json(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """Yield the rows of a list, of an object that holds one, or of lines with an object each."""
    lines = list(_lines(file, name))
    text = "".join(line for _, line, _ in lines).rstrip()
    bad = [problem for _, _, problem in lines if problem]
    try:
        value = decode(text) if text else []
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "\n{" in text:
            yield from _objects(lines, name)
        else:
            yield from bad or [Problem(_syntax(error, "file"), f"{name}:{getattr(error, 'lineno', 1)}")]
        return
    if isinstance(value, dict):
        lists = [key for key, cell in value.items() if key not in OWN_LISTS and _has_objects(cell)]
        if len(lists) > 1:
            what = f"the object holds {len(lists)} lists of objects ({', '.join(lists)})"
            bad.append(Problem(f"{what}; put each into a file of its own", name))
        value = value[lists[0]] if lists else [value]
    if not isinstance(value, list):
        bad.append(Problem(f"the file holds {kind(value)}; it must hold a list of objects", name))
    # Behind a bad byte, and among several lists, no row can be trusted to be the one that is meant.
    yield from bad or (_checked(item, f"{name}: row {number}") for number, item in enumerate(value, 1))


def _has_objects(cell: object) -> bool:
    return isinstance(cell, list) and any(isinstance(item, dict) for item in cell)


def _parquet(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        yield Problem("reading parquet needs pyarrow; run: pip install pyarrow", name)
        return
    number = 0
    try:
        data = parquet.ParquetFile(file)
        if twice := repeats(data.schema_arrow.names):
            yield Problem(f"there are two columns {twice[0]!r}; rename one", name)
            return
        for batch in data.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield _checked(value, f"{name}: row {number}")
    except (arrow.lib.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        yield Problem(f"the parquet data cannot be read after row {number} ({reason!a})", name)


READERS: dict[str, Reader] = {
    ".txt": _document,
    ".md": _document,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_table, delimiter=","),
    ".tsv": partial(_table, delimiter="\t"),
    ".parquet": _parquet,
}
