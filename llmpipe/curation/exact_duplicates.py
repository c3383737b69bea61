"""exact_duplicates: of texts that are equal, white space apart, the first stays; the same for paragraphs.

    - exact_duplicates
    - {step: exact_duplicates, of: paragraphs, min_words: 10}

A paragraph is what stands on a line. What repeats on every page of a site (menus, notices) goes that way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from llmpipe.curation import Verdict
from llmpipe.curation.crew import Crew
from llmpipe.curation.spool import Bits, Buckets, Spool
from llmpipe.settings import Strict

KEY_BYTES = 16


class Settings(Strict):
    """What `step: exact_duplicates` understands."""

    step: Literal["exact_duplicates"] = Field("exact_duplicates", description="which step this is")
    of: Literal["texts", "paragraphs"] = Field("texts", description="what is compared")
    min_words: int = Field(8, ge=1, description="paragraphs of fewer words may repeat")


def keys(settings: Settings) -> Callable[[str], list[bytes]]:
    """Return what hashes a text, or each of its paragraphs that are long enough."""
    if settings.of == "texts":
        return lambda text: [_key(text)]
    return lambda text: [_key(line) for line in text.split("\n") if _counts(line, settings)]


def build(settings: Settings) -> Callable[[str, tuple[int, ...]], Verdict]:
    """Return what takes repeated units out of a text."""
    if settings.of == "texts":
        return lambda text, repeated: Verdict((), ("repeated text",)) if repeated else Verdict((text,))

    def without(text: str, repeated: tuple[int, ...]) -> Verdict:
        if not repeated:
            return Verdict((text,))
        unit, kept, gone = -1, [], frozenset(repeated)
        for line in text.split("\n"):
            unit += (counts := _counts(line, settings))
            if not (counts and unit in gone):
                kept.append(line)
        left = "\n".join(kept).strip()
        return Verdict((left,) if left else (), ("repeated paragraph",) * len(repeated))

    return without


def _key(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def _counts(line: str, settings: Settings) -> bool:
    return len(line.split()) >= settings.min_words


class Comparison:
    """Hashes of all units with their numbers, sorted on disk."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        del settings
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self._buckets = Buckets(folder, columns=3)

    def add(self, keys: bytes, first: int) -> None:
        """Take the keys of further units, of which `first` is the number of the first."""
        import numpy as np

        halves = np.frombuffer(keys, dtype="<u8").reshape(-1, 2)
        numbers = np.arange(first, first + len(halves), dtype="<u8")
        self._buckets.add(np.column_stack([halves, numbers]), halves[:, 0] >> np.uint64(56))

    def repeats(self, spool: Spool, crew: Crew) -> Bits:
        """Return the units that an earlier one equals."""
        import numpy as np

        del crew
        found = Bits(spool.units)
        for rows in self._buckets.sorted():
            again = np.all(rows[1:, :2] == rows[:-1, :2], axis=1)
            for number in rows[1:][again, 2].tolist():
                found.add(number)
        return found
