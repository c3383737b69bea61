"""Word's .docx as `read_file` sees it: paragraphs, headings and tables, by the standard library alone.

A .docx is a zip file with XML in it, ECMA-376 part 1, 17.2 and 17.3. Both can be bombs: what is unpacked is bounded,
and XML with a document type, where entities are declared, is refused; Word writes none.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from xml.etree import ElementTree

from llmpipe.errors import TalkError
from llmpipe.tools.document import Document, as_lines

BODY = "word/document.xml"
MOST_BYTES = 30 * 2**20
"""The most of the XML, unpacked; a book has a tenth of it."""
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
MOST_HEADINGS = 40


def document(data: bytes, name: str) -> Document:
    """Read a document, a paragraph or a row of a table a line.

    Raises:
        TalkError: it is none, or too large when unpacked.
    """
    root = _tree(data, name)
    body = root.find(f"{WORD}body")
    lines: list[str] = []
    headings: list[str] = []
    for text, style in _paragraphs(root if body is None else body):
        if style.lower().startswith(("heading", "title")):
            headings.append(f"line {len(lines) + 1}: {text}")
        lines += as_lines(text)
    tables = sum(1 for _ in root.iter(f"{WORD}tbl"))
    words = sum(len(line.split()) for line in lines)
    about = [f"{name}: {len(lines):,} lines, {words:,} words, {tables} tables", *headings[:MOST_HEADINGS]]
    return Document("line", lines, "\n".join(about))


def _tree(data: bytes, name: str) -> ElementTree.Element:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive, zipfile.Path(archive, BODY).open("rb") as file:
            xml = file.read(MOST_BYTES + 1)  # what an entry says of its size is not to be believed
    except FileNotFoundError as error:
        raise TalkError(f"{name} is no .docx: there is no {BODY} in it") from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise TalkError(f"{name} is no .docx that can be read: {error}") from error
    if len(xml) > MOST_BYTES:
        raise TalkError(f"{name} is larger than {MOST_BYTES:,} bytes when unpacked, the most that is read")
    try:
        if b"<!DOCTYPE" in xml or "<!DOCTYPE".encode("utf-16-le") in xml or "<!DOCTYPE".encode("utf-16-be") in xml:
            raise TalkError(f"{name} declares entities, which Word does not write")
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise TalkError(f"{name} is no .docx that can be read: {error}") from error


def _paragraphs(parent: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """Yield the text of each paragraph with the name of its style, and rows of tables with ` | ` between the cells."""
    for child in parent:
        if child.tag == f"{WORD}p":
            if text := _text(child):
                style = child.find(f"{WORD}pPr/{WORD}pStyle")
                yield text, "" if style is None else style.get(f"{WORD}val", "")
        elif child.tag == f"{WORD}tbl":
            for row in child.iter(f"{WORD}tr"):
                cells = (" ".join(map(_text, cell.iter(f"{WORD}p"))) for cell in row.findall(f"{WORD}tc"))
                yield " | ".join(cells), ""
        elif child.tag in (f"{WORD}sdt", f"{WORD}sdtContent", f"{WORD}customXml", f"{WORD}ins"):
            yield from _paragraphs(child)


def _text(paragraph: ElementTree.Element) -> str:
    """Return the text of a paragraph, with what was inserted and without what was deleted (w:delText)."""
    marks = {f"{WORD}tab": "\t", f"{WORD}br": "\n", f"{WORD}cr": "\n", f"{WORD}noBreakHyphen": "-"}
    parts = [part.text or "" if part.tag == f"{WORD}t" else marks.get(part.tag, "") for part in paragraph.iter()]
    return "".join(parts).strip()
