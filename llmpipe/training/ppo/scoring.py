"""Scoring answers: reward models and Python functions, each component kept apart until the weighted sum.

A reward model reads exactly the tokens that it was trained on: the prompt's and the answer's own ids where its
tokenizer and template are the policy's, else the answer is written again in its template. The end token is there
when the answer came to one, and missing when it was cut off.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.data import said
from llmpipe.data.preferences import Preference, Prompt
from llmpipe.errors import Problem, StageError
from llmpipe.training.pairs import encode
from llmpipe.training.ppo import core
from llmpipe.training.ppo.rollout import Answer
from llmpipe.training.reward_model import RewardModel, vocabulary_of

CALLED = "it is called as f(prompts=[...], answers=[...]), with references=[...] where it takes them"


@dataclass(frozen=True)
class Asked:
    """A prompt as it was given, and its tokens."""

    prompt: Prompt
    ids: list[int]

    @property
    def shown(self) -> str:
        """What was asked last, for people and for reward functions."""
        if self.prompt.text is not None:
            return self.prompt.text
        return self.prompt.messages[-1]["content"] if self.prompt.messages else ""


class Scorer(Protocol):
    """Something that scores answers: a weighted sum of components, brought to scale, times its own weight."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    weight: float
    normalized: bool

    def scores(self, asked: Sequence[Asked], answers: Sequence[Answer], texts: Sequence[str]) -> Tensor:
        """Return (answers, components), not finite where an answer cannot be scored."""
        ...


@dataclass
class ModelScorer:
    """A reward model; each of its heads is a component."""

    model: RewardModel
    names: tuple[str, ...]
    weights: tuple[float, ...]
    weight: float
    normalized: bool
    same_tokens: bool

    def scores(self, asked: Sequence[Asked], answers: Sequence[Answer], texts: Sequence[str]) -> Tensor:
        """Return (answers, heads)."""
        if self.same_tokens:
            end = self.model.format.end_token_id
            rows = [one.ids + with_end(answer, end) for one, answer in zip(asked, answers, strict=True)]
        else:
            rows = [
                self.rewritten(one.prompt, text, finished=answer.finished)
                for one, answer, text in zip(asked, answers, texts, strict=True)
            ]
        return self.model.scores(rows)

    def rewritten(self, prompt: Prompt, text: str, *, finished: bool) -> list[int]:
        """Write a prompt and an answer as the reward stage wrote those that it learned from."""
        form, said_it = self.model.format, [said("assistant", text.strip())]
        plain = (prompt.text or "", text, text)
        one = Preference(prompt.messages, said_it, said_it, text=plain, tools=prompt.tools)
        chat = form.chat_template is not None
        (pair,) = encode([one], self.model.tokenizer, end=form.end_token_id, chat=chat, heads=form.criteria)
        ids = pair.chosen
        return ids if finished or ids[-1] != form.end_token_id else ids[:-1]


def with_end(answer: Answer, end: int) -> list[int]:
    """Return an answer's tokens, its end token replaced by the one that the reward model knows."""
    return [*answer.ids[:-1], end] if answer.finished else answer.ids


def model_scorer(
    model: RewardModel, tokenizer: Tokenizer, *, name: str, weight: float, chat: bool, normalized: bool
) -> tuple[ModelScorer, str | None]:
    """Make the scorer of a reward model, and say why its input is written again if it has to be.

    Raises:
        StageError: the two cannot be brought together.
    """
    form = model.format
    template = tokenizer.chat_template if chat else None
    heads = len(form.criteria)
    names = (name,) if heads == 1 else tuple(f"{name}.{criterion}" for criterion in form.criteria)
    reason = None
    if form.vocabulary != vocabulary_of(tokenizer):
        reason = "has another tokenizer than the policy"
    elif form.chat_template != template:
        reason = "was trained with another chat template than the policy's"
    if reason and (form.chat_template is None) != (template is None):
        raise StageError(
            f"the reward model {name} {reason}: one writes conversations, the other plain text",
            hint="train the reward model from this policy, or from a model with the same template",
        )
    same = reason is None
    return ModelScorer(model, names, form.weights, weight, normalized=normalized, same_tokens=same), reason


@dataclass
class FunctionScorer:
    """A Python function of the user's: `reward(prompts, answers)` gives a number, or None, for each answer.

    `prompts` are the last things that were asked, `answers` the texts. One that takes `references` also gets the
    answers that the rows of the data give, None where a row gives none.
    """

    function: Callable[..., Any]
    names: tuple[str, ...]
    weight: float
    weights: tuple[float, ...] = (1.0,)
    normalized: bool = False

    def scores(self, asked: Sequence[Asked], answers: Sequence[Answer], texts: Sequence[str]) -> Tensor:
        """Return (answers, 1); not finite where the function returned None or a number that is not finite."""
        if not answers:
            return torch.zeros(0, 1)
        prompts = [one.shown for one in asked]
        name = self.names[0]
        known = {"references": [one.prompt.reference for one in asked]} if self.takes_references else {}
        try:
            found = self.function(prompts=prompts, answers=[text.strip() for text in texts], **known)
            found = list(found) if isinstance(found, Iterable) else found
        except Exception as error:
            inside = traceback.extract_tb(error.__traceback__)[1:]  # the first frame is this one
            where = f"{inside[-1].filename}:{inside[-1].lineno}" if inside else None
            what = f"the reward function {name} raised {type(error).__name__}: {error}"
            raise StageError(Problem(what, where=where), hint=CALLED) from error
        if not isinstance(found, list):
            raise StageError(f"the reward function {name} gave {found!r} instead of a list of numbers", hint=CALLED)
        if len(found) != len(answers):
            raise StageError(f"the reward function {name} gave {len(found)} numbers for {len(answers)} answers")
        return torch.tensor([[self._number(value)] for value in found])

    @property
    def takes_references(self) -> bool:
        """Whether the function asks for the rows' own answers."""
        return "references" in inspect.signature(self.function).parameters

    def _number(self, value: object) -> float:
        if value is None:
            return math.nan
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            message = f"the reward function {self.names[0]} gave {value!r}, which is no number"
            raise StageError(message, hint="return a number for each answer, or None to leave it out") from None


@dataclass
class Rewards:
    """The sum of all scorers: each component normalised where it is to be, weighted, added, clipped."""

    scorers: Sequence[Scorer]
    clip: float | None
    shift: list[float] | None = None
    scale: list[float] | None = None

    def keep_units(self) -> None:
        """Take every score as it is: where only the answers to one prompt are compared, a shift would cancel out."""
        self.shift, self.scale = [0.0] * len(self.scorers), [1.0] * len(self.scorers)

    @property
    def names(self) -> list[str]:
        """Name the components."""
        return [name for scorer in self.scorers for name in scorer.names]

    def components(self, asked: Sequence[Asked], answers: Sequence[Answer], texts: Sequence[str]) -> Tensor:
        """Return every scorer's scores as they are, (answers, components)."""
        return torch.cat([scorer.scores(asked, answers, texts).double() for scorer in self.scorers], dim=1)

    def measure(self, components: Tensor) -> None:
        """Take mean and deviation of each scorer's weighted sum from answers of the reference, over all processes.

        One scale for all heads of a model keeps their weights meaningful.
        """
        self.shift, self.scale = [], []
        for scorer, columns in zip(self.scorers, self._columns(components), strict=True):
            total = columns @ torch.tensor(scorer.weights, dtype=torch.float64)
            _, mean, variance = core.moments(total[total.isfinite()])
            flat = variance <= 1e-12
            self.shift.append(mean if scorer.normalized else 0.0)
            self.scale.append(1.0 if flat or not scorer.normalized else math.sqrt(variance))

    def total(self, components: Tensor) -> Tensor:
        """Return the reward of each answer, (answers,), before penalties; not finite where a component is not."""
        assert self.shift is not None and self.scale is not None
        total = torch.zeros(len(components), dtype=torch.float64)
        for scorer, columns, shift, scale in zip(
            self.scorers, self._columns(components), self.shift, self.scale, strict=True
        ):
            summed = columns @ torch.tensor(scorer.weights, dtype=torch.float64)
            total += scorer.weight * (summed - shift) / scale
        total = total.where(total.isfinite(), math.nan)  # a bound must not make a number of infinity
        return total if self.clip is None else total.clamp(-self.clip, self.clip)

    def _columns(self, components: Tensor) -> Sequence[Tensor]:
        return components.split([len(scorer.names) for scorer in self.scorers], dim=1)
