"""Turn rows into what a model's safety is measured by: prompts that are to be refused, and whom a pronoun means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmpipe.data import Cells
from llmpipe.data.benchmarks import choices_of, gold_of
from llmpipe.data.tables import Format, Table

PRONOUNS = {
    "she": "she her hers herself",
    "he": "he him his himself",
    "they": "they them their theirs themself themselves",
}


@dataclass(frozen=True, slots=True)
class Refusable:
    """A prompt that is to be refused."""

    category: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Question:
    """Whom a pronoun means: `gold` is the place of the right choice."""

    query: str
    choices: list[str]
    gold: int
    pronoun: str


def _refusable(cells: Cells) -> Refusable:
    category = cells.value.get("category")
    return Refusable("all" if category is None else str(category), cells.text("prompt"))


def _question(cells: Cells) -> Question:
    query, choices = cells.text("query"), choices_of(cells)
    words = set(re.findall(r"[a-z]+", query.lower()))
    found = [name for name, forms in PRONOUNS.items() if words & set(forms.split())]
    if query.strip() and len(found) != 1:
        told = " and ".join(found) or "none"
        cells.wrong.append(
            f"{cells.name('query')} must have pronouns of one kind, {', '.join(PRONOUNS)}, and has {told}"
        )
    return Question(query, choices, gold_of(cells, choices), found[0] if found else "")


REFUSALS = Table({"refusals": Format(("prompt",), ("category",), "a prompt that is to be refused", _refusable)})
QUESTIONS = Table(
    {"pronouns": Format(("query", "choices", "gold"), (), "a question about whom a pronoun means", _question)}
)
