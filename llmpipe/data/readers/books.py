"""Books: epub, a zip archive of XHTML chapters, and pdf. A book is one document.

Neither may fill the memory: an archive that unpacks to more than `MAX_BYTES` is no book, and pypdf has bounds of its
own.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BufferedReader
from urllib.parse import unquote
from xml.etree import ElementTree

from llmpipe.data import BadRow, Row
from llmpipe.data.readers import checked, optional
from llmpipe.data.readers.web import decoded
from llmpipe.errors import Problem

MAX_BYTES = 64 * 2**20
"""The Bible is 5 MB of XHTML."""

XML = {"c": "urn:oasis:names:tc:opendocument:xmlns:container", "o": "http://www.idpf.org/2007/opf"}
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
FACTS = {"title": "title", "language": "language", "creator": "author", "rights": "licence"}
BLOCKS = frozenset(
    "address article aside blockquote body br dd div dl dt figcaption figure footer h1 h2 h3 h4 h5 h6 header hr li "
    "main nav ol p pre section table td th tr ul".split()
)
SILENT = frozenset({"head", "script", "style", "svg", "math", "rt", "rp"})


class _BadBookError(Exception):
    """Why a book cannot be read."""


def epub(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """Yield a book as one document, chapter after chapter in reading order: `text`, and what its package says of it."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield checked(_Epub(archive).row(), f"{name}:1")
    except _BadBookError as error:
        yield BadRow(str(error), name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        yield BadRow(f"this is not a valid epub file ({error!a})", name)


class _Epub:
    """An open archive, and how much of it may still be unpacked."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.left = MAX_BYTES

    def row(self) -> dict[str, str]:
        """Return the text of the book and what is known of it."""
        container = self._xml("META-INF/container.xml")
        root = container.find("c:rootfiles/c:rootfile", XML)
        if root is None or not root.get("full-path"):
            raise _BadBookError("the book does not say where its package is")
        path = str(root.get("full-path"))
        package = self._xml(path)
        chapters = [chapter for part in self._spine(package, path) if (chapter := self._chapter(part))]
        if not chapters:
            raise _BadBookError("there is no text in this book")
        facts: dict[str, str] = {}
        for element in package.iterfind("o:metadata/*", XML):
            key = FACTS.get(element.tag.removeprefix(DUBLIN_CORE))
            if key and (element.text or "").strip():
                facts.setdefault(key, " ".join(str(element.text).split()))
        return {"text": "\n\n".join(chapters)} | facts

    def _spine(self, package: ElementTree.Element, path: str) -> Iterator[str]:
        """Yield the names of the chapters in the order of reading."""
        items = {item.get("id"): item for item in package.iterfind("o:manifest/o:item", XML)}
        for place in package.iterfind("o:spine/o:itemref", XML):
            item = items.get(place.get("idref"))
            if item is not None and "nav" not in item.get("properties", "").split() and item.get("href"):
                yield posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(str(item.get("href")))))

    def _chapter(self, part: str) -> str:
        markup, wrong = decoded(self._bytes(part))
        if wrong:
            raise _BadBookError(f"{part}: {wrong}; is the book locked (DRM)?")
        return plain(markup)

    def _xml(self, part: str) -> ElementTree.Element:
        content = self._bytes(part)
        if b"<!ENTITY" in content:  # a few of them may grow to gigabytes, and no book needs any
            raise _BadBookError(f"{part} defines entities of its own")
        try:
            return ElementTree.fromstring(content)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise _BadBookError(f"{part} is not XML: {error}") from None

    def _bytes(self, part: str) -> bytes:
        """Unpack a part of the book, within the bound whatever its header claims."""
        try:
            with zipfile.Path(self.archive, part).open("rb") as opened:
                content = opened.read(self.left + 1)
        except FileNotFoundError:
            raise _BadBookError(f"{part} is missing in the book") from None
        self.left -= len(content)
        if self.left < 0:
            raise _BadBookError(f"the book unpacks to more than {MAX_BYTES // 2**20} MB")
        return content


class _Plain(HTMLParser):
    """Collects the words of a chapter, a line to a block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in SILENT:
            self.silent.append(tag)
        elif tag in BLOCKS:
            self.parts.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.silent:
            del self.silent[self.silent.index(tag) :]
        elif tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(re.sub(r"\s+", " ", data))


def plain(markup: str) -> str:
    """Return the words of a chapter: nothing is left out as it is of a web page, for books have no menus."""
    parser = _Plain()
    parser.feed(markup)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


def pdf(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """Yield a pdf as one document: `text`, page after page, and `title` where it says one."""
    pypdf = optional("pypdf")
    try:
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            yield BadRow("the pdf is locked by a password", name)
            return
        pages = [page.extract_text().strip() for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    except Exception as error:  # of a broken file pypdf 7.1 raises TypeError and AttributeError, too
        yield BadRow(f"the pdf cannot be read ({type(error).__name__}: {str(error).partition(chr(10))[0]!a})", name)
        return
    text = "\n\n".join(page for page in pages if page).encode("utf-8", "replace").decode().replace("\0", "")
    if not text.strip():
        yield BadRow("there is no text in this pdf; a scan must be recognised (OCR) first", name)
        return
    facts = {"title": " ".join(title.split())} if isinstance(title, str) and title.strip() else {}
    yield checked({"text": text} | facts, f"{name}:1")
