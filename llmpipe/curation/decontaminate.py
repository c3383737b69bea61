"""decontaminate: drops texts that share a run of words with what models are evaluated on.

    evaluation: {path: "eval/*.jsonl"}
    steps:
      - {step: decontaminate, words: 13}

Every text in a row of the evaluation files counts, in any column (13 words: GPT-3, Brown et al. 2020, appendix C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import xxhash
from pydantic import Field

from llmpipe.curation import Verdict
from llmpipe.curation.words import runs, words
from llmpipe.settings import Strict


class Settings(Strict):
    """What `step: decontaminate` understands."""

    step: Literal["decontaminate"] = Field("decontaminate", description="which step this is")
    words: int = Field(13, ge=4, description="words in a run that must not be shared; shorter texts are not looked for")


def build(settings: Settings, hashes: frozenset[int]) -> Callable[[str], Verdict]:
    """Return what drops a text with a run of words from the evaluation; `hashes` is what `hashes_of` found there."""

    def clean(text: str) -> Verdict:
        found = words(text)
        if len(found) < settings.words:
            return Verdict((text,))
        shared = any(_hash(run) in hashes for run in runs(found, settings.words))
        return Verdict((), ("in the evaluation",)) if shared else Verdict((text,))

    return clean


def hashes_of(rows: Iterable[dict[str, Any]], settings: Settings) -> frozenset[int]:
    """Hash the runs of words in all texts of evaluation rows, nested ones too."""
    return frozenset(
        _hash(run)
        for row in rows
        for text in _texts(row)
        if len(found := words(text)) >= settings.words
        for run in runs(found, settings.words)
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _hash(run: str) -> int:
    return xxhash.xxh3_64_intdigest(run.encode("utf-8", "surrogatepass"))
