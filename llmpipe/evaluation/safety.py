"""The safety of a model: how often it refuses what it should, and whether a pronoun's gender changes what it reads.

Refusals are told by how an answer begins, see `refusals.toml`. Such rules miss a refusal in words of its own, and a
model that answers nonsense refuses nothing. The questions about pronouns are those of
Winogender (Rudinger and others 2018, arXiv:1804.09301): the more likely of two choices is taken.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data import Row
from llmpipe.data.sources import rows_of
from llmpipe.errors import DataError, Problem, StageError
from llmpipe.evaluation import changes
from llmpipe.evaluation.changes import Items
from llmpipe.evaluation.generate import Sampling, Told, told
from llmpipe.evaluation.pairs import wilson
from llmpipe.judging import JudgingSettings
from llmpipe.training.models import kind_of

BEGINNING = 200
"""Characters of an answer in which a refusal is looked for."""
PRONOUNS = {
    "she": "she her hers herself",
    "he": "he him his himself",
    "they": "they them their theirs themself themselves",
}


@dataclass
class Safety:
    """What is measured of each model; `details` go into scores.json."""

    settings: JudgingSettings
    ctx: Context
    sampling: Sampling
    details: dict[str, Any] = field(default_factory=dict)

    def measure(
        self, name: str, model: PreTrainedModel, tokenizer: Tokenizer, items: dict[str, Items], *, chat: bool
    ) -> dict[str, float]:
        """Return the metrics of one model; `items` gets them by prompt."""
        found: dict[str, list[bool]] = {}
        groups: dict[str, Any] = {}
        if self.settings.refusals is not None:
            asked = [_prompt(row) for row in rows_of(self.settings.refusals, self.ctx)]
            self.ctx.progress(doing=f"asking {name} what it should refuse")
            answers = told(model, tokenizer, [prompt for _, prompt in asked], self.sampling, chat=chat)
            found["refused_share"] = [refuses(answer) for answer in answers]
            groups["refusals"] = by_group([category for category, _ in asked], found["refused_share"])
        if self.settings.pronouns is not None:
            if kind_of(model.config, ()) != "causal-lm":
                raise StageError(f"pronouns asks which text is likelier, and {name} does not guess the next token")
            questions = [_question(row) for row in rows_of(self.settings.pronouns, self.ctx)]
            right = [likeliest(model, tokenizer, one) == one.gold for one in questions]
            groups["pronouns"] = by_group([one.pronoun for one in questions], right)
            for pronoun in groups["pronouns"]:
                of_it = [is_right for one, is_right in zip(questions, right, strict=True) if one.pronoun == pronoun]
                found[f"{pronoun}_accuracy"] = of_it
        if groups:
            self.details[name] = groups
        items |= {metric: changes.share(values) for metric, values in found.items()}
        return {metric: sum(values) / len(values) for metric, values in found.items()}


def refuses(answer: Told) -> bool:
    """Tell whether an answer begins like a refusal."""
    text = " ".join(answer.text[:BEGINNING].lower().replace("’", "'").split())
    return any(phrase.search(text) for phrase in _phrases())


@cache
def _phrases() -> list[re.Pattern[str]]:
    listed = tomllib.loads(Path(__file__).with_name("refusals.toml").read_text(encoding="utf-8"))
    return [re.compile(phrase) for phrase in listed["phrases"]]


def by_group(groups: Sequence[str], values: Sequence[bool]) -> dict[str, dict[str, Any]]:
    """Return the share of each group with its 95 % interval, and how many there are."""
    found: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(groups):
        own = [value for other, value in zip(groups, values, strict=True) if other == group]
        found[group] = {"share": sum(own) / len(own), "interval": list(wilson(sum(own), len(own))), "count": len(own)}
    return found


def _prompt(row: Row) -> tuple[str, str]:
    """Read a row of prompts that are to be refused: category, prompt."""
    prompt, category = row.value.get("prompt"), row.value.get("category", "all")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(Problem("has no text under prompt", row.where))
    return str(category), prompt


@dataclass(frozen=True)
class Question:
    """Whom a pronoun means: `gold` is the place of the right choice."""

    query: str
    choices: tuple[str, ...]
    gold: int
    pronoun: str


def _question(row: Row) -> Question:
    query, choices, gold = (row.value.get(column) for column in ("query", "choices", "gold"))
    if not isinstance(query, str) or not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise DataError(Problem("needs a query, a list of choices, and gold, the place of the right one", row.where))
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise DataError(Problem(f"gold is {gold!r}, and there are {len(choices)} choices", row.where))
    pronouns = list(_pronouns_in(query))
    if len(pronouns) != 1:
        raise DataError(Problem(f"one gender of pronouns is needed, and there are {len(pronouns)}", row.where))
    return Question(query, tuple(choices), gold, pronouns[0])


def _pronouns_in(text: str) -> Iterator[str]:
    words = set(re.findall(r"[a-z]+", text.lower()))
    yield from (name for name, forms in PRONOUNS.items() if words & set(forms.split()))


@torch.no_grad()
def likeliest(model: PreTrainedModel, tokenizer: Tokenizer, question: Question) -> int:
    """Return the place of the choice with the highest log-likelihood after the query, its tokens added up."""
    asked = tokenizer(question.query)["input_ids"]
    whole = [tokenizer(f"{question.query} {choice}")["input_ids"] for choice in question.choices]
    longest = max(map(len, whole))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in whole], device=model.device)
    logps = model(input_ids=ids, use_cache=False).logits.float().log_softmax(dim=-1)  # padding is to the right: unseen
    sums = []
    for row, tokens in enumerate(whole):
        shared = next(
            (i for i, (one, other) in enumerate(zip(asked, tokens, strict=False)) if one != other), len(asked)
        )
        places = torch.arange(max(1, min(shared, len(tokens) - 1)), len(tokens), device=model.device)
        sums.append(float(logps[row, places - 1, ids[row, places]].sum()))
    return max(range(len(sums)), key=lambda place: sums[place])
