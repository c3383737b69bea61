"""The safety of a model: how often it refuses what it should, and whether a pronoun's gender changes what it reads.

Refusals are told by how an answer begins, see `refusals.toml`. Such rules miss a refusal in words of its own, and a
model that answers nonsense refuses nothing. The questions about pronouns are those of
Winogender (Rudinger and others 2018, arXiv:1804.09301): the more likely of two choices is taken.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data.safety import QUESTIONS, REFUSALS, Question
from llmpipe.data.sources import read_asked
from llmpipe.data.tables import Item, Table
from llmpipe.errors import StageError
from llmpipe.evaluation import changes
from llmpipe.evaluation.changes import Items
from llmpipe.evaluation.generate import Sampling, Told, told
from llmpipe.evaluation.likelihood import encoded, log_likelihoods
from llmpipe.evaluation.pairs import wilson
from llmpipe.judging import JudgingSettings
from llmpipe.settings import AnySource
from llmpipe.training.models import context_length, kind_of

BEGINNING = 200
"""Characters of an answer in which a refusal is looked for."""


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
            asked = self._read(self.settings.refusals, REFUSALS)
            self.ctx.progress(doing=f"asking {name} what it should refuse")
            answers = told(model, tokenizer, [one.prompt for one in asked], self.sampling, chat=chat)
            found["refused_share"] = [refuses(answer) for answer in answers]
            groups["refusals"] = by_group([one.category for one in asked], found["refused_share"])
        if self.settings.pronouns is not None:
            if kind_of(model.config, ()) != "causal-lm":
                raise StageError(f"pronouns asks which text is likelier, and {name} does not guess the next token")
            questions = self._read(self.settings.pronouns, QUESTIONS)
            chosen = likeliest(model, tokenizer, questions)
            right = [place == one.gold for place, one in zip(chosen, questions, strict=True)]
            groups["pronouns"] = by_group([one.pronoun for one in questions], right)
            for pronoun in groups["pronouns"]:
                of_it = [is_right for one, is_right in zip(questions, right, strict=True) if one.pronoun == pronoun]
                found[f"{pronoun}_accuracy"] = of_it
        if groups:
            self.details[name] = groups
        items |= {metric: changes.share(values) for metric, values in found.items()}
        return {metric: sum(values) / len(values) for metric, values in found.items()}

    def _read(self, sources: Sequence[AnySource], table: Table[Item]) -> list[Item]:
        return [one for source in sources for _, one in read_asked(source, self.ctx, table)]


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


def likeliest(model: PreTrainedModel, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[int]:
    """Return for each question the place of the choice with the highest log-likelihood, its tokens added up."""
    pairs = [encoded(tokenizer, one.query, f" {choice}") for one in questions for choice in one.choices]
    nats = iter(one.nats for one in log_likelihoods(model, pairs, window=context_length(model)))
    found = [list(islice(nats, len(one.choices))) for one in questions]
    return [max(range(len(row)), key=row.__getitem__) for row in found]
