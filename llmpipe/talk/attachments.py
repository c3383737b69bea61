"""Files that a user sends along: text, put into the turn as a block under the file's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from llmpipe.errors import Problem, TalkError
from llmpipe.tools.fence import fenced

LANGUAGES = {".txt": "", ".md": "markdown", ".csv": "csv", ".json": "json"}
"""What is read, with the word after the fence."""
MOST_BYTES = 1_000_000
KNOWN = ", ".join(LANGUAGES)


@dataclass(frozen=True)
class Attachment:
    """A file's name and its text."""

    name: str
    text: str


def read(path: Path) -> Attachment:
    """Read a file.

    Raises:
        TalkError: it is not there, too large, no text, or of a kind that is not read.
    """
    _check_name(path.name)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise TalkError(Problem(f"cannot be read: {error.strerror}", where=str(path))) from error
    return of(path.name, data)


def of(name: str, data: bytes) -> Attachment:
    """Make an attachment of what was uploaded under a name; raises what `read` does."""
    name = PurePath(name).name
    _check_name(name)
    if len(data) > MOST_BYTES:
        raise TalkError(Problem(f"is larger than {MOST_BYTES:,} bytes, the most that is read", where=name))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TalkError(Problem("is no text in UTF-8", where=name), hint="save it as UTF-8") from error
    if "\0" in text:
        raise TalkError(Problem("is no text: there are NUL characters in it", where=name))
    return Attachment(name, text.replace("\r\n", "\n"))


def _check_name(name: str) -> None:
    kind = PurePath(name).suffix.lower()
    if kind in (".pdf", ".docx"):
        raise TalkError(Problem(f"{kind} files are not read yet", where=name), hint=f"save its text as one of {KNOWN}")
    if kind not in LANGUAGES:
        raise TalkError(Problem(f"is none of the kinds that are read: {KNOWN}", where=name))


def with_files(text: str, attachments: Sequence[Attachment]) -> str:
    """Put files before what the user says, each in a fence that is longer than any in it."""
    blocks = []
    for file in attachments:
        language = LANGUAGES[PurePath(file.name).suffix.lower()]
        name = " ".join(file.name.split())  # a line break in a name would end the line it stands on
        blocks.append(f"{name}:\n{fenced(file.text, language)}")
    return "\n\n".join([*blocks, text] if text.strip() else blocks)
