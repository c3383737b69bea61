"""Plain text and Markdown: a file is one document; one too large for that is many, so that memory stays flat."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from io import BufferedReader, BytesIO

from llmpipe.data import BadRow, Row, flaw
from llmpipe.data.readers import lines
from llmpipe.errors import Problem

LARGE_BYTES = 8 * 2**20
"""Up to this size a file is one document; the Bible has 4 MB."""
PIECE_BYTES = 2**16
"""The most of a document of a larger file: ten thousand words, so that the file has a hundred documents or more, and a
share of them, picked by hash, is about that share of its text."""
ENDS = b"\n\n", b"\n\r\n", b"\n", b"\r", b" "
"""Where a document may end, the best place first: at a blank line, else at the end of a line, else of a word."""


def text(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """A text file is one document, or several that are its text when joined.

    Its line ends become plain newlines, as Python reads text.
    """
    number, offset = 1, 0
    for piece in _pieces(file):
        yield from _document(piece, name, number=number, offset=offset)
        number += piece.count(b"\n")
        offset += len(piece)


def _document(piece: bytes, name: str, *, number: int, offset: int) -> Iterator[Row | Problem]:
    """Yield a piece as a document, or all that is wrong with its lines."""
    try:
        whole = (piece if offset else piece.removeprefix(codecs.BOM_UTF8)).decode()
    except UnicodeDecodeError:
        whole = None
    if whole is not None and not flaw(whole):
        if whole.strip():
            yield Row(f"{name}:{number}", {"text": whole.replace("\r\n", "\n").replace("\r", "\n")})
        return
    again = False
    for at, line, problem in lines(BytesIO(piece), name, first=number, offset=offset):
        if wrong := problem.message if problem else flaw(line):
            yield BadRow(wrong, f"{name}:{at}", raw=line, again=again)
            again = True


def _pieces(file: BufferedReader) -> Iterator[bytes]:
    """Yield a file as a whole, or a large one in pieces."""
    held, start = file.read(LARGE_BYTES + 1), 0
    if len(held) <= LARGE_BYTES:
        yield held
        return
    while True:
        if len(held) - start <= PIECE_BYTES:
            held, start = held[start:] + file.read(LARGE_BYTES), 0
        if len(held) <= PIECE_BYTES:
            yield held
            return
        end = _end(held, start)
        yield held[start:end]
        start = end


def _end(held: bytes, start: int) -> int:
    """Return where the piece ends that begins at `start`; more than a piece is held from there on."""
    last = start + PIECE_BYTES
    for mark in ENDS:
        at = held.rfind(mark, start + PIECE_BYTES // 2, last)
        if at >= 0:
            return at + len(mark)
    # No character is cut: the second and later bytes of one begin with the bits 10, and there are three at most.
    return next((end for end in range(last, last - 4, -1) if held[end] & 0xC0 != 0x80), last)
