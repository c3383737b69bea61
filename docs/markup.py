"""Small pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MADE = "<!-- made by docs/make_pages.py from the code; what is edited here is lost -->"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table; a column in which nothing stands is left out."""
    cells = [[str(cell or "") for cell in row] for row in rows]
    kept = [column for column in range(len(header)) if any(row[column] for row in cells)]
    lines = [
        [header[column] for column in kept],
        ["---"] * len(kept),
        *([row[column] for column in kept] for row in cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def note(text: str) -> str:
    """Escape a plain text for a table: what would be a tag, an emphasis or the end of a cell; `code` stays code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    escaped = (
        part if part.startswith("`") else re.sub(r"([*\\])", r"\\\1", part).replace("<", "&lt;") for part in parts
    )
    return "".join(escaped).replace("|", "\\|")


def code(text: str) -> str:
    """Show a text as code, in a table too."""
    return f"`{text}`".replace("|", "\\|")


def sentence(text: str) -> str:
    """Begin with a capital and end with a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
