"""Read data files row by row and name every bad row by file and line.

`readers` has a reader for each suffix. `read_rows` passes their rows on and raises the problems of all files together
at the end.
"""

from __future__ import annotations

import glob
import gzip
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from io import BufferedReader, RawIOBase
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from llmpipe.data import PassedOver, Problems, Row
from llmpipe.data.readers import Reader, books, code, csv_parquet, documents, json_rows, optional, web
from llmpipe.errors import DataError, Problem, did_you_mean

__all__ = ["READERS", "Row", "expand", "read_rows", "shown", "suffix_of"]

ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
PACKED = {".gz": "gzip", ".zst": "zstd"}
BOMB_BYTES, BOMB_RATIO = 256 * 2**20, 500
"""Text is packed to a fifth; rows that are all alike to a hundredth. A small file may be as odd as it likes."""
NOT_TEXT = {
    b"\x1f\x8b": "the file is gzip-compressed; let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "the file is zstd-compressed; let its name end in .zst",
    b"\xff\xfe": "the file is UTF-16; save it as UTF-8",
    b"\xfe\xff": "the file is UTF-16; save it as UTF-8",
    b"PK\x03\x04": "the file is a zip archive; unpack it first",
    b"PAR1": "the file is parquet; let its name end in .parquet",
    b"%PDF": "the file is a pdf; let its name end in .pdf",
}


def read_rows(paths: Sequence[Path], *, problems: Problems | None = None) -> Iterator[Row]:
    """Yield the good rows of all files in order, then raise one DataError with the problems of all files.

    `problems` takes note of them instead, for the caller to raise when the rows have been looked into.
    """
    noted = problems or Problems()
    below = Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else Path()
    for path in paths:
        by_name = code.passed_over(path.absolute(), below=below) if suffix_of(path) in code.LANGUAGES else None
        for item in [by_name] if by_name else _read(path):
            if isinstance(item, Row):
                yield item
            elif isinstance(item, PassedOver):
                noted.passed_over[item.why] += 1
            else:
                noted.add(item)
    if problems is None:
        noted.raise_any()


def expand(pattern: str, *, base: Path, format: str | None = None) -> list[Path]:
    """Return the files that a path, a directory or a glob (`**` allowed) means below `base`, sorted.

    A directory means the files below it that can be read here; hidden ones are left out. Source code is meant by the
    format `code` alone: scripts often lie beside the data that they made.
    """
    path = base / Path(pattern).expanduser()
    if _is_everything(path):
        raise DataError(Problem("this means all files of the machine; name a folder", shown(path)))
    if path.is_dir():
        below = [path / name for name in glob.glob("**/*", root_dir=path, recursive=True)]
        known = code.LANGUAGES if format == "code" else READERS.keys() - code.LANGUAGES
        found = [file for file in below if file.is_file() and suffix_of(file) in known]
        what = f"no file in this directory can be read; known are {_known()}"
        if format != "code" and any(suffix_of(file) in code.LANGUAGES for file in below):
            what = "only source code is in this directory; `format: code` reads it"
    else:
        # A file's own name comes before its reading as a pattern: "chat[1].jsonl" is a name that people have.
        names = glob.glob(str(Path(pattern).expanduser()), root_dir=base, recursive=True)
        found = [path] if path.exists() else [base / name for name in names if not (base / name).is_dir()]
        what = "no file matches this pattern" if glob.has_magic(pattern) else "no such file"
    if not found:
        raise DataError(Problem(what if path.is_dir() else what + _near(path), shown(path)))
    return sorted(found)


def _is_everything(path: Path) -> bool:
    """Tell a pattern that would look below the root, where /proc has links that lead around for ever."""
    if not path.is_dir() and "**" not in path.parts:
        return False
    folder = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts)).resolve()
    return folder == Path(folder.anchor) or folder.is_relative_to("/proc")


def shown(path: Path) -> str:
    """Return the path as messages name it: relative to the working directory where it lies below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _near(path: Path) -> str:
    """Suggest a name for the first part of the path that does not exist."""
    while not path.parent.exists():
        path = path.parent
    return did_you_mean(path.name, sorted(entry.name for entry in path.parent.glob("*")))


def suffix_of(path: Path) -> str:
    """Return the suffix that says how a file is read, below that of its packing."""
    name = path.name.lower()
    return PurePath(name.removesuffix(next((end for end in PACKED if name.endswith(end)), ""))).suffix


def needed(path: Path) -> set[str]:
    """Name the modules that reading a file takes and that may be missing."""
    return {NEEDS[suffix] for suffix in (path.suffix.lower(), suffix_of(path)) if suffix in NEEDS}


def _known() -> str:
    listed = ", ".join(suffix for suffix in READERS if suffix not in code.LANGUAGES)
    return f"{listed}, each also with {' or '.join(PACKED)}, and source code"


class _Unpacked(RawIOBase):
    """What is in a packed file, as long as it is no bomb: a few kilobytes that would fill memory or a disk."""

    def __init__(self, inner: Any, packed_bytes: int) -> None:
        self.inner, self.most = inner, max(BOMB_BYTES, BOMB_RATIO * packed_bytes)

    def readable(self) -> bool:
        """Be a file to read."""
        return True

    def seekable(self) -> bool:
        """Be a file to move in, which parquet needs; going back unpacks anew."""
        return True

    def tell(self) -> int:
        """Return the place in what is unpacked."""
        return int(self.inner.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        return self._checked(int(self.inner.seek(offset, whence)))

    def readinto(self, buffer: Any) -> int:
        """Unpack as much as fits."""
        count: int = self.inner.readinto(buffer)
        self._checked(self.tell())
        return count

    def _checked(self, place: int) -> int:
        if place > self.most:
            raise OSError(f"it unpacks to more than {BOMB_RATIO} times its size")
        return place

    def close(self) -> None:
        """Close the packed file, too."""
        self.inner.close()
        super().close()


def _open(path: Path) -> Any:
    match path.suffix.lower():
        case ".gz":
            return _Unpacked(gzip.GzipFile(path), path.stat().st_size)
        case ".zst":
            return _Unpacked(optional(ZSTD).ZstdFile(path), path.stat().st_size)
    return path.open("rb", buffering=0)


def _read(path: Path) -> Iterator[Row | Problem | PassedOver]:
    """Yield what is in one file, good and bad."""
    name, suffix = shown(path), suffix_of(path)
    failures: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    if path.suffix.lower() == ".zst":
        failures = (*failures, optional(ZSTD).ZstdError)
    try:
        with BufferedReader(_open(path)) as file:
            head = file.peek(4)
            wrong = next((why for magic, why in NOT_TEXT.items() if head.startswith(magic)), None)
            if suffix not in READERS:
                wrong = f"files with the suffix {suffix!r} cannot be read; known are {_known()}"
            elif not head:
                wrong = "the file is empty"
            elif suffix in BINARY or wrong is None:
                wrong = "the file holds no data"
                for item in READERS[suffix](file, name):
                    wrong = None
                    yield item
            if wrong:
                yield Problem(wrong, name)
    except failures as error:
        yield Problem(_failure(path, error), name)


def _failure(path: Path, error: Exception) -> str:
    packed = PACKED.get(path.suffix.lower())
    match error:
        case FileNotFoundError():
            return f"no such file{_near(path)}"
        case IsADirectoryError():
            return "this is a directory; name the files in it"
        case EOFError():
            return f"the {packed} data ends too early; was the file cut off?"
        case gzip.BadGzipFile() | zlib.error():
            return "this is not valid gzip data; pack the file again or drop .gz from its name"
        case OSError():
            reason = str(error.strerror or error)
            return f"the file cannot be read: {reason[:1].lower()}{reason[1:]}"
    return f"this is not valid {packed} data; pack the file again or drop {path.suffix} from its name"


READERS: dict[str, Reader] = {
    ".txt": documents.text,
    ".md": documents.text,
    ".jsonl": json_rows.json_lines,
    ".ndjson": json_rows.json_lines,
    ".json": json_rows.json_file,
    ".csv": partial(csv_parquet.table, delimiter=","),
    ".tsv": partial(csv_parquet.table, delimiter="\t"),
    ".parquet": csv_parquet.parquet,
    ".html": web.page,
    ".htm": web.page,
    ".xhtml": web.page,
    ".epub": books.epub,
    ".pdf": books.pdf,
    **dict.fromkeys(code.LANGUAGES, code.source),
}
NEEDS = {".html": "trafilatura", ".htm": "trafilatura", ".xhtml": "trafilatura", ".pdf": "pypdf", ".zst": ZSTD}
"""Modules of the extra `data`, by the suffix of a file that only they can read."""
BINARY = frozenset({".parquet", ".html", ".htm", ".xhtml", ".epub", ".pdf"})
"""What is not read as lines of UTF-8; a web page may name its encoding."""
