"""Plain text and Markdown: a file is one document."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader

from llmpipe.data import BadRow, Row, flaw
from llmpipe.data.readers import lines
from llmpipe.errors import Problem


def text(file: BufferedReader, name: str) -> Iterator[Row | Problem]:
    """A text file is one document; its line ends become plain newlines, as Python reads text."""
    parts, good = [], True
    for number, line, problem in lines(file, name):
        wrong = problem.message if problem else flaw(line)
        if wrong:
            yield BadRow(wrong, f"{name}:{number}", raw=line, again=not good)
            good = False
        parts.append(line)
    whole = "".join(parts).replace("\r\n", "\n").replace("\r", "\n")
    if good and whole.strip():
        yield Row(f"{name}:1", {"text": whole})
