"""What a step did: how many texts it saw, dropped and changed, for which reasons, and a few examples of each."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from llmpipe.curation import Document, Verdict

EXAMPLES = 3
EXCERPT_CHARACTERS = 160
BEFORE_CHARACTERS = 40
PRIVATE = frozenset({"pii"})
"""Steps whose examples do not quote what they found."""


@dataclass
class Tally:
    """The account of one step."""

    step: str
    documents_in: int = 0
    dropped: int = 0
    changed: int = 0
    added: int = 0
    found: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    told: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Examples of the step's own, which tell more."""

    def note(self, document: Document, verdict: Verdict) -> None:
        """Count what became of a text."""
        self.documents_in += 1
        changed = bool(verdict.texts) and verdict.texts[0] != document.text
        self.dropped += not verdict.texts
        self.changed += changed
        self.added += max(0, len(verdict.texts) - 1)
        self.found.update(verdict.found)
        for name in dict.fromkeys(verdict.found or (("changed",) if changed else ())):
            if len(self.examples.setdefault(name, [])) < EXAMPLES:
                self.examples[name].append(self._example(document, verdict))

    def _example(self, document: Document, verdict: Verdict) -> dict[str, Any]:
        if not verdict.texts:
            return {"where": document.where} | ({} if self.step in PRIVATE else {"dropped": excerpt(document.text)})
        before, after = document.text, verdict.texts[-1]
        at = max(0, _first_change(before, after) - BEFORE_CHARACTERS)
        shown = {} if self.step in PRIVATE or before == after else {"before": excerpt(before[at:])}
        return {"where": document.where, **shown} | ({} if before == after else {"after": excerpt(after[at:])})

    def add(self, other: Tally) -> None:
        """Add the account of the texts that come after."""
        self.documents_in += other.documents_in
        self.dropped += other.dropped
        self.changed += other.changed
        self.added += other.added
        self.found.update(other.found)
        for name, examples in other.examples.items():
            mine = self.examples.setdefault(name, [])
            mine += examples[: EXAMPLES - len(mine)]

    def as_json(self) -> dict[str, Any]:
        """Return the account for curation.json."""
        counts = {key: getattr(self, key) for key in ("step", "documents_in", "dropped", "changed", "added")}
        return counts | {"found": dict(self.found.most_common()), "examples": self.told or self.examples}


def _first_change(before: str, after: str) -> int:
    """Return where two texts begin to differ."""
    return next((at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), len(after))


def excerpt(text: str) -> str:
    """Bring the beginning of a text into one short line."""
    return textwrap.shorten(text[: 4 * EXCERPT_CHARACTERS], EXCERPT_CHARACTERS, placeholder=" …") or text[:20]
