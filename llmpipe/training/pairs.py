"""Preferences → pairs of token ids, as a reward model reads them, and as PPO will write them for it.

Each answer is the prompt's ids, just as a policy is given them, and then the answer's own, its end token last. The two
are cut as one text where the cut falls between tokens, which is what a policy that learned from whole texts will say;
where a token would reach over the cut, they are cut one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data import Message, Row
from llmpipe.data.formats import Conversation
from llmpipe.data.labelled import Labelled
from llmpipe.data.preferences import Preference
from llmpipe.errors import DataError, Problem, did_you_mean
from llmpipe.training.chat import PLAIN_TEMPLATE, render
from llmpipe.training.packing import Batch
from llmpipe.training.reward_model import ONE_CRITERION

Found = list[tuple[Row, Preference]]
Rows = Sequence[tuple[Row, Preference | Labelled]]


@dataclass(frozen=True)
class Pair:
    """Two answers as ids; the first `prompt` of both are the prompt's. `head` is the output that compares them."""

    chosen: list[int]
    rejected: list[int]
    prompt: int
    head: int
    margin: float | None
    joined: bool
    """Whether both answers, cut as one text with the prompt, begin with the prompt's ids."""

    @property
    def longest(self) -> int:
        """How many tokens the longer one has, prompt included."""
        return max(len(self.chosen), len(self.rejected))

    @property
    def tokens(self) -> int:
        """How many tokens both have, prompts included."""
        return len(self.chosen) + len(self.rejected)

    def cut(self, context: int) -> Pair:
        """Keep the first `context` tokens of both; an answer without its end is read as one that was cut off."""
        return replace(self, chosen=self.chosen[:context], rejected=self.rejected[:context])


def set_template(template: str | None, found: Rows, tokenizer: Tokenizer, ctx: Context) -> bool:
    """Decide how answers are written: through a template (True), or as plain text where rows and model have none."""
    if template is not None:
        tokenizer.chat_template = template
    elif tokenizer.chat_template is None:
        if all(one.text is not None for _, one in found):
            ctx.say("the model has no chat template, and the data are plain text: answers follow prompts directly")
            return False
        tokenizer.chat_template = PLAIN_TEMPLATE
        ctx.say("the model has no chat template; a plain one is set and saved with it (User: … Assistant: …)")
    return True


def encode(
    preferences: Sequence[Preference], tokenizer: Tokenizer, *, end: int, chat: bool, heads: Sequence[str]
) -> list[Pair]:
    """Tokenise preferences, through the chat template or (`chat` is False) as plain text after the begin token.

    `end` is put where the template writes no end token. Where the template rewrites the prompt once an answer stands
    after it, the text with the answer is kept as it is.
    """
    texts = [
        chat_texts(one.prompt, [one.chosen, one.rejected], one.tools, tokenizer) if chat else _plain_texts(one)
        for one in preferences
    ]
    pairs = []
    for one, written in zip(preferences, write(texts, tokenizer, end=end, chat=chat), strict=True):
        chosen, rejected = written.answers
        head = heads.index(one.criterion or ONE_CRITERION) if len(heads) > 1 else 0
        pairs.append(Pair(chosen, rejected, len(written.prompt), head, one.margin, written.joined))
    return pairs


@dataclass(frozen=True)
class Written:
    """A prompt and answers to it as ids, each answer with the prompt before it and its end token last."""

    prompt: list[int]
    answers: list[list[int]]
    joined: bool
    """Whether all, cut as one text with the prompt, begin with the prompt's ids."""


def write(texts: Sequence[Sequence[str]], tokenizer: Tokenizer, *, end: int, chat: bool) -> Iterator[Written]:
    """Tokenise prompts, each followed by as many texts that hold the prompt and an answer."""
    if not texts:
        return
    plain = {"add_special_tokens": False, "verbose": False}  # it would warn of every text that is to be dropped
    cut = iter(tokenizer([text for group in texts for text in group], **plain)["input_ids"])
    opening = [] if chat or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for group in texts:
        prompt, *answers = islice(cut, len(group))
        joined = all(ids[: len(prompt)] == prompt for ids in answers)
        if not joined and all(text.startswith(group[0]) for text in group):
            tails = tokenizer([text[len(group[0]) :] for text in group[1:]], **plain)["input_ids"]
            answers = [prompt + tail for tail in tails]
        whole = [opening + ids + [end] * (ids[-1:] != [end]) for ids in answers]
        yield Written(opening + prompt, whole, joined)


def _plain_texts(one: Preference) -> tuple[str, str, str]:
    assert one.text is not None
    prompt, chosen, rejected = one.text
    return prompt, prompt + chosen, prompt + rejected


def chat_texts(
    prompt: list[Message], answers: Sequence[list[Message]], tools: str | None, tokenizer: Tokenizer
) -> list[str]:
    """Render the prompt up to where the answer begins, then with each answer, up to its end token."""
    asked = render(Conversation(prompt, tools), tokenizer, len(prompt), ask=True) if prompt else ""
    whole = [Conversation([*prompt, *answer], tools) for answer in answers]
    return [asked, *(render(said, tokenizer, len(said.messages)).rstrip() for said in whole)]


def criteria_of(found: Found, named: dict[str, float] | None) -> dict[str, float]:
    """Return the weight of each criterion, in the order of the settings, else of the alphabet with a weight of 1.

    Raises:
        DataError: a row is judged by a criterion that is not named, or none by one that is.
    """
    first: dict[str, str] = {}
    for row, one in found:
        first.setdefault(one.criterion or ONE_CRITERION, row.where)
    if named is None:
        return dict.fromkeys(sorted(first), 1.0)
    listed = ", ".join(named)
    problems = [
        Problem(f"judged by {name!r}, which is not in criteria: {listed}{did_you_mean(name, list(named))}", where=where)
        for name, where in first.items()
        if name not in named
    ]
    problems += [
        Problem(f"no row is judged by {name!r}{did_you_mean(name, list(first))}") for name in named if name not in first
    ]
    if problems:
        raise DataError(problems, hint="name the criteria of the data under criteria:, or leave it out")
    return named


def summed(found: Found, weights: dict[str, float]) -> tuple[Found, int]:
    """Turn what several criteria say of the same two answers into one preference.

    The margins are added by weight (a preference without one counts as 1); the answer that comes out ahead is chosen.

    Returns:
        The preferences, and how many pairs of answers came out equal and were left out.
    """
    totals: dict[object, float] = {}
    seen: dict[object, tuple[Row, Preference]] = {}
    for row, one in found:
        chosen, rejected = _words(one.chosen), _words(one.rejected)
        asked = (_words(one.prompt), one.tools)
        swapped = (asked, rejected, chosen) in seen
        key = (asked, rejected, chosen) if swapped else (asked, chosen, rejected)
        seen.setdefault(key, (row, one))
        margin = 1.0 if one.margin is None else one.margin
        totals[key] = totals.get(key, 0.0) + weights[one.criterion or ONE_CRITERION] * margin * (-1 if swapped else 1)
    kept = [(row, _turned(one, totals[key])) for key, (row, one) in seen.items() if totals[key]]
    return kept, len(seen) - len(kept)


def _words(messages: Iterable[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)


def _turned(one: Preference, total: float) -> Preference:
    if total > 0:
        return replace(one, criterion=None, margin=total)
    text = None if one.text is None else (one.text[0], one.text[2], one.text[1])
    return replace(one, chosen=one.rejected, rejected=one.chosen, text=text, criterion=None, margin=-total)


def fitting(
    sides: Sequence[list[Pair]], ctx: Context, *, context: int, cut: bool
) -> tuple[list[list[Pair]], dict[str, int]]:
    """Drop (or `cut`) what does not fit, then what is equal as tokens, and say how much it was.

    Raises:
        DataError: nothing is left to train on.
    """
    total = sum(map(len, sides))
    fitted = [[pair.cut(context) if cut else pair for pair in side if cut or pair.longest <= context] for side in sides]
    too_long = sum(pair.longest > context for side in sides for pair in side)
    kept = [[pair for pair in side if pair.chosen != pair.rejected] for side in fitted]
    equal = sum(map(len, fitted)) - sum(map(len, kept))
    if too_long:
        share = f"{too_long:,} of {total:,} pairs ({too_long / total:.0%})"
        ctx.say(f"{share} are longer than {context} tokens: {'cut off' if cut else 'dropped'}")
    if equal:
        ctx.say(f"{equal:,} of {total:,} pairs are equal as tokens{' once they are cut' * cut}: dropped")
    if not kept[0]:
        raise DataError(
            f"no pair fits into {context} tokens" if too_long else "no pair differs in its tokens",
            hint="use a model with a longer context, or too_long: truncate" if too_long and not cut else None,
        )
    return kept, {"too_long_rows": too_long, "equal_rows": equal}


class _Sized(Protocol):
    @property
    def tokens(self) -> int: ...


Sized = TypeVar("Sized", bound=_Sized)


def measurable(held_out: Sequence[Sized], *, max_tokens: int) -> list[Sized]:
    """Return as many held-out pairs (or answers) as have that many tokens at most, or one."""
    kept: list[Sized] = []
    tokens = 0
    for one in held_out:
        tokens += one.tokens
        if kept and tokens > max_tokens:
            break
        kept.append(one)
    return kept


def columns_of(pairs: Sequence[Pair], *, margin: bool) -> dict[str, list[object]]:
    """Return pairs as columns of a data set; `length` is what batches of like length are made by."""
    columns: dict[str, list[object]] = {
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
        "head": [pair.head for pair in pairs],
        "length": [pair.longest for pair in pairs],
    }
    if margin:
        columns["margin"] = [pair.margin or 0.0 for pair in pairs]
    return columns


@dataclass(frozen=True)
class PairCollator:
    """Rows of `columns_of` → a batch: first all chosen answers, then all rejected, padded at the right end.

    There is no mask, for the padding is to the right, where nothing is seen, and attention is faster without.
    """

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> Batch:
        """Return input_ids (2 x pairs, longest); head and, where the rows have it, margin, each (pairs,)."""
        answers = [torch.tensor(row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=self.pad_id)
        batch = {"input_ids": ids, "head": torch.tensor([row["head"] for row in rows])}
        if "margin" in rows[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float)
        return batch
