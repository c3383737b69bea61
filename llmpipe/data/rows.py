"""Read data files row by row and name every bad row by file and line.

`readers` has a reader for each suffix. `read_rows` passes their rows on and raises the problems of all files together
at the end.
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Any

from llmpipe.data import PassedOver, Problems, Row
from llmpipe.data.readers import Reader, csv_parquet, documents, json_rows
from llmpipe.errors import DataError, Problem, did_you_mean

__all__ = ["READERS", "Row", "expand", "read_rows", "shown"]

NOT_TEXT = {
    b"\x1f\x8b": "the file is gzip-compressed; let its name end in .gz",
    b"\xff\xfe": "the file is UTF-16; save it as UTF-8",
    b"\xfe\xff": "the file is UTF-16; save it as UTF-8",
    b"PK\x03\x04": "the file is a zip archive; unpack it first",
    b"PAR1": "the file is parquet; let its name end in .parquet",
}


def read_rows(paths: Sequence[Path], *, problems: Problems | None = None) -> Iterator[Row]:
    """Yield the good rows of all files in order, then raise one DataError with the problems of all files.

    `problems` takes note of them instead, for the caller to raise when the rows have been looked into.
    """
    noted = problems or Problems()
    for path in paths:
        for item in _read(path):
            if isinstance(item, Row):
                yield item
            elif isinstance(item, PassedOver):
                noted.passed_over[item.why] += 1
            else:
                noted.add(item)
    if problems is None:
        noted.raise_any()


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


def _read(path: Path) -> Iterator[Row | Problem | PassedOver]:
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


READERS: dict[str, Reader] = {
    ".txt": documents.text,
    ".md": documents.text,
    ".jsonl": json_rows.json_lines,
    ".ndjson": json_rows.json_lines,
    ".json": json_rows.json_file,
    ".csv": partial(csv_parquet.table, delimiter=","),
    ".tsv": partial(csv_parquet.table, delimiter="\t"),
    ".parquet": csv_parquet.parquet,
}
