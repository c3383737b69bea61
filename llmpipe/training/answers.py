"""Labelled answers → token ids, in the batches that KTO learns from, each beside an answer to another prompt.

They are written as tokens just as the answers of pairs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data.labelled import Labelled
from llmpipe.errors import DataError
from llmpipe.training import pairs

LEAST, MOST = 1.0, 4 / 3
"""What good answers should weigh next to bad ones, all together (arXiv:2402.01306, eq. 8)."""


@dataclass(frozen=True)
class Answer:
    """An answer as ids, of which the first `prompt`, at least one, are the prompt's."""

    ids: list[int]
    prompt: int
    is_good: bool

    @property
    def asked(self) -> tuple[int, ...]:
        """The prompt's ids: equal for answers that compete."""
        return tuple(self.ids[: self.prompt])

    @property
    def tokens(self) -> int:
        """How many tokens it has, prompt included."""
        return len(self.ids)


def encode(found: Sequence[Labelled], tokenizer: Tokenizer, *, end: int, chat: bool) -> list[Answer]:
    """Tokenise labelled answers, through the chat template or (`chat` is False) as plain text.

    Where a template rewrites the prompt once an answer stands after it, the answer begins where the two differ.
    """
    texts = [pairs.chat_texts(one.prompt, [one.answer], one.tools, tokenizer) if chat else _plain(one) for one in found]
    answers = []
    for one, written in zip(found, pairs.write(texts, tokenizer, end=end, chat=chat), strict=True):
        (ids,) = written.answers
        shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(written.prompt, ids, strict=False)))
        answers.append(Answer(ids, max(1, shared), one.is_good))
    return answers


def _plain(one: Labelled) -> tuple[str, str]:
    assert one.text is not None
    return one.text[0], "".join(one.text)


def fitting(
    sides: Sequence[Sequence[Answer]], ctx: Context, *, context: int, cut: bool
) -> tuple[list[list[Answer]], dict[str, int]]:
    """Drop (or `cut`) the answers that do not fit, and say how many they were.

    Raises:
        DataError: nothing is left to train on, or answers of one kind alone.
    """
    total = sum(map(len, sides))
    too_long = sum(answer.tokens > context for side in sides for answer in side)
    cut_off = [[replace(one, ids=one.ids[:context]) for one in side if cut or one.tokens <= context] for side in sides]
    kept = [[one for one in side if one.tokens > one.prompt] for side in cut_off]
    if too_long:
        share = f"{too_long:,} of {total:,} answers ({too_long / total:.0%})"
        ctx.say(f"{share} are longer than {context} tokens: {'cut off' if cut else 'dropped'}")
    if not kept[0]:
        raise DataError(
            f"no answer fits into {context} tokens",
            hint=None if cut else "use a model with a longer context, or too_long: truncate",
        )
    if len({one.is_good for one in kept[0]}) == 1:
        good = kept[0][0].is_good
        labels = ("good (true)", "bad (false)") if good else ("bad (false)", "good (true)")
        raise DataError(
            f"all {len(kept[0]):,} answers to learn from are labelled {labels[0]}; kto learns from both kinds",
            hint=f"add answers labelled {labels[1]}" + ("; from good ones alone, sft learns" if good else ""),
        )
    return kept, {"too_long_rows": too_long}


def balance(train: Sequence[Answer], ctx: Context, *, good: float, bad: float) -> float:
    """Return what good answers weigh next to bad ones, each as much as is given; say what would mend a poor balance."""
    count = sum(one.is_good for one in train)
    ratio = good * count / (bad * (len(train) - count))
    if not LEAST <= ratio <= MOST:
        aim = (LEAST + MOST) / 2
        name = "undesirable_weight" if ratio > MOST else "desirable_weight"
        weight = bad * ratio / aim if ratio > MOST else good * aim / ratio
        ctx.say(
            f"{count:,} good and {len(train) - count:,} bad answers weigh {ratio:.2g} to 1; {LEAST:.0f} to {MOST:.2f} "
            f"is recommended (arXiv:2402.01306): trainer: {{{name}: {weight:.2g}}}"
        )
    return ratio


def mismatched(answers: Sequence[Answer], *, batch: int) -> list[Answer]:
    """Return for each answer one that answers another prompt: the next in its batch, else any, else another answer.

    TRL 1.16 takes the one before in the batch, which in data of pairs is often an answer to the same prompt, and in a
    batch of one the answer itself; both make the KL estimate too high.
    """
    first = answers[0]
    differs = next((one for one in answers if one.asked != first.asked), None)
    found = []
    for place, answer in enumerate(answers):
        begin = place - place % batch
        others = [*answers[place + 1 : begin + batch], *answers[begin:place]]
        anywhere = (first if first.asked != answer.asked else differs) or answers[place - 1]
        found.append(next((one for one in others if one.asked != answer.asked), anywhere))
    return found


def columns_of(answers: Sequence[Answer], *, batch: int, context: int) -> dict[str, list[Any]]:
    """Return answers as columns of a data set, as TRL's collator reads them; `batch` of them stay together."""
    beside = [
        other.ids[other.prompt :][: context - answer.prompt]
        for answer, other in zip(answers, mismatched(answers, batch=batch), strict=True)
    ]
    return {
        "prompt_ids": [one.ids[: one.prompt] for one in answers],
        "completion_ids": [one.ids[one.prompt :] for one in answers],
        "KL_completion_ids": beside,
        "label": [one.is_good for one in answers],
        "length": [max(one.tokens, one.prompt + len(ids)) for one, ids in zip(answers, beside, strict=True)],
    }
