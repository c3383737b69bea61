"""Texts, Markdown and PDF as `read_file` sees them, and the reader of each kind of file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, overload

from llmpipe.errors import TalkError
from llmpipe.tools import columns, docx, shape
from llmpipe.tools.document import Document, as_lines, decoded
from llmpipe.tools.fence import one_line

MOST_HEADINGS = 40
HEADING = re.compile(r"#{1,6} +\S")
MARKS = re.compile(r"```|~~~")
MOST_PAGES = 2_000


def text(data: bytes, name: str) -> Document:
    """Read a text by its lines."""
    content = decoded(data, name)
    return Document("line", as_lines(content), _counted(name, content))


def markdown(data: bytes, name: str) -> Document:
    """Read Markdown by its lines, and say where its headings are."""
    content = decoded(data, name)
    parts, headings, in_code = as_lines(content), [], False
    for number, line in enumerate(parts, 1):
        if MARKS.match(line):
            in_code = not in_code
        elif HEADING.match(line) and not in_code:
            headings.append(f"line {number}: {one_line(line, 100)}")
    about = "\n".join([_counted(name, content), *headings[:MOST_HEADINGS]])
    return Document("line", parts, about)


def _counted(name: str, content: str) -> str:
    lines = len(content.rstrip("\n").split("\n")) if content else 0
    return f"{name}: {lines:,} lines, {len(content.split()):,} words, {len(content):,} characters"


def pdf(data: bytes, name: str) -> Document:
    """Read a PDF by its pages, each when it is asked for.

    Raises:
        TalkError: pypdf is missing, or cannot read it.
    """
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise TalkError(
            "reading PDF needs pypdf, which is not installed", hint="pip install 'llmpipe[tools]'"
        ) from error
    try:
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise TalkError(f"{name} is locked with a password")
        pages = _Pages(reader, min(len(reader.pages), MOST_PAGES))
        title = one_line(str(reader.metadata.title if reader.metadata else ""), 200)
    except TalkError:
        raise
    except Exception as error:  # pypdf lets through whatever a broken file makes of its objects
        raise TalkError(f"{name} is no PDF that can be read: {one_line(str(error), 200)}") from error
    count = "1 page" if len(pages) == 1 else f"{len(pages):,} pages"
    return Document("page", pages, f"{name}: {count}" + (f", {title}" if title else ""))


class _Pages(Sequence[str]):
    """The texts of a PDF's pages, each taken out once."""

    def __init__(self, reader: Any, total: int) -> None:
        self.reader, self.total = reader, total
        self.texts: dict[int, str] = {}

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(self.total))]
        if not 0 <= place < self.total:
            raise IndexError(place)
        if place not in self.texts:
            try:
                self.texts[place] = self.reader.pages[place].extract_text() or "(no text: it may be a picture)"
            except Exception as error:  # one broken page is no reason not to read the others
                self.texts[place] = f"(this page cannot be read: {one_line(str(error), 100)})"
        return self.texts[place]


READERS: Mapping[str, Callable[[bytes, str], Document]] = {
    ".txt": text,
    ".md": markdown,
    ".csv": columns.table,
    ".json": shape.tree,
    ".pdf": pdf,
    ".docx": docx.document,
}
