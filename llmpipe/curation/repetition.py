"""What repeats within one text: lines, paragraphs, runs of words (Gopher, Rae et al. 2021, table A1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from llmpipe.settings import Strict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Share = Annotated[float, Field(ge=0, le=1)]
BREAK = re.compile(r"\n\s*\n")
FACTOR = 0x9E3779B97F4A7C15


class Repetition(Strict):
    """The greatest shares of a text that may be repetition."""

    lines: Share = Field(default=0.3, description="of the lines")
    paragraphs: Share = Field(default=0.3, description="of the paragraphs")
    line_characters: Share = Field(default=0.2, description="of the characters, in repeated lines")
    paragraph_characters: Share = Field(default=0.2, description="of the characters, in repeated paragraphs")
    top: list[Share] = Field(
        default=[0.2, 0.18, 0.16],
        min_length=3,
        max_length=3,
        description="of the characters, in the most frequent run of 2, 3 and 4 words",
    )
    runs: list[Share] = Field(
        default=[0.15, 0.14, 0.13, 0.12, 0.11, 0.1],
        min_length=6,
        max_length=6,
        description="of the characters, in repeated runs of 5 to 10 words",
    )


def build(limits: Repetition) -> Callable[[str], str | None]:
    """Return what names the first kind of repetition that a text has too much of."""
    import numpy as np

    def found_in(text: str) -> str | None:
        if wrong := _repeated_units(text, limits):
            return wrong
        words = text.split()
        hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).astype(np.uint64)
        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        runs, characters = hashes, lengths
        for size in range(2, 11):
            runs = runs[:-1] * FACTOR + hashes[size - 1 :]  # of 64 bits: two runs of a text are not taken for one
            characters = characters[:-1] + lengths[size - 1 :]
            if not len(runs):
                return None
            if size <= 4:
                if _top_characters(runs, characters + size - 1) > limits.top[size - 2] * len(text):
                    return f"one run of {size} words"
                continue
            repeated = _run_characters(runs, characters, size)
            if repeated > limits.runs[size - 5] * len(text):
                return f"repeated runs of {size} words"
            if not repeated:
                return None  # a longer run can only repeat where a shorter one does
        return None

    return found_in


def _repeated_units(text: str, limits: Repetition) -> str | None:
    units = (
        ("paragraphs", [part for part in BREAK.split(text) if part], limits.paragraphs, limits.paragraph_characters),
        ("lines", [line for line in text.split("\n") if line], limits.lines, limits.line_characters),
    )
    for name, parts, share, character_share in units:
        if len(parts) - len(set(parts)) > share * len(parts):
            return f"repeated {name}"
        if repeated_characters(parts) > character_share * len(text):
            return f"repeated {name}"
    return None


def repeated_characters(parts: Sequence[str]) -> int:
    """Count the characters of the parts that occurred before."""
    return sum(map(len, parts)) - sum(map(len, set(parts)))


def _top_characters(runs: NDArray[np.uint64], characters: NDArray[np.int64]) -> int:
    """Count the characters in the most frequent run of words, if it comes twice."""
    import numpy as np

    _, first, counts = np.unique(runs, return_index=True, return_counts=True)
    most = counts.max()
    return int(most * characters[first[counts == most]].max()) if most > 1 else 0


def _run_characters(runs: NDArray[np.uint64], characters: NDArray[np.int64], size: int) -> int:
    """Count the characters in runs that occurred before; runs that are counted do not overlap."""
    import numpy as np

    ordered = np.sort(runs)
    if not (ordered[1:] == ordered[:-1]).any():
        return 0
    found, lengths = runs.tolist(), characters.tolist()
    seen: set[int] = set()
    repeated = at = 0
    while at < len(found):
        if found[at] in seen:
            repeated += lengths[at]
            at += size
        else:
            seen.add(found[at])
            at += 1
    return repeated
