"""Conversations → token ids and labels: the loss falls on what the assistant says, its end token included.

The spans are found in the rendered text, not by searching ids: the template is rendered up to each assistant turn and
after it, and the tokens between are the turn's. This holds for any template that does not rewrite earlier turns, with
or without `{% generation %}` marks; for those that do rewrite, the marks are used, and without marks the data is
refused, for a silent empty mask trains on nothing (huggingface/trl#4201).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.data.formats import Conversation
from llmpipe.errors import DataError
from llmpipe.training import templates
from llmpipe.training.packing import IGNORED, Batch

PLAIN_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- message['role'].capitalize() + ':' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}
    {%- else %}
        {{- ' ' + message['content'] + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""
"""For a model without a template: plain words, for its vocabulary has no tokens for roles.

The space belongs to the answer: most tokenizers join it with the first word, so a question that ended in a space
would be cut into other tokens than in training.
"""


@dataclass(frozen=True)
class Example:
    """One conversation as ids, with True where the loss falls; both of length seq."""

    ids: list[int]
    learned: list[bool]


def encode(conversation: Conversation, tokenizer: Tokenizer) -> Example:
    """Tokenise a conversation; a plain text is learned whole, from bos to the end token.

    Raises:
        DataError: the template rewrites earlier turns and has no `{% generation %}` marks.
    """
    if conversation.text is not None:
        opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = opening + tokenizer(conversation.text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        return Example(ids, [True] * len(ids))
    whole = render(conversation, tokenizer, len(conversation.messages))
    spans = _spans(conversation, tokenizer, whole)
    if spans is None:
        return _by_marks(conversation, tokenizer)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    learned = [any(first <= start < last for first, last in spans) for start in starts]
    return Example(encoded["input_ids"], learned)


def render(conversation: Conversation, tokenizer: Tokenizer, turns: int, *, ask: bool = False) -> str:
    """Render the first `turns` messages; `ask` adds the opening of the assistant's answer."""
    text = templates.apply(tokenizer, **_inputs(conversation, turns), tokenize=False, add_generation_prompt=ask)
    assert isinstance(text, str)
    return text


def _inputs(conversation: Conversation, turns: int | None = None) -> dict[str, Any]:
    return {
        "conversation": [{"role": m["role"], "content": m["content"]} for m in conversation.messages[:turns]],
        "tools": json.loads(conversation.tools) if conversation.tools else None,
    }


def _spans(conversation: Conversation, tokenizer: Tokenizer, whole: str) -> list[tuple[int, int]] | None:
    """Return the character spans of the turns to learn; None when the template rewrites earlier turns."""
    spans = []
    last = len(conversation.messages) - 1
    for turn, message in enumerate(conversation.messages):
        if message["role"] != "assistant" or not message["train"]:
            continue
        before = render(conversation, tokenizer, turn, ask=True)
        after = whole if turn == last else render(conversation, tokenizer, turn + 1)
        if not (after.startswith(before) and whole.startswith(after)):
            return None
        spans.append((len(before), len(after.rstrip())))  # the end token is the last to learn, not a line break
    return spans


def _by_marks(conversation: Conversation, tokenizer: Tokenizer) -> Example:
    if "{% generation" not in str(tokenizer.chat_template).replace("{%-", "{%"):
        raise DataError(
            "this model's chat template rewrites earlier turns and does not mark what the assistant says",
            hint="give the stage a template with {% generation %} marks: chat_template: FILE",
        )
    if not all(message["train"] for message in conversation.messages if message["role"] == "assistant"):
        raise DataError("this model's chat template rewrites earlier turns, so single turns cannot be left unlearned")
    marked: dict[str, Any] = {"return_dict": True, "return_assistant_tokens_mask": True}
    encoded: Any = templates.apply(tokenizer, **_inputs(conversation), **marked)
    return Example(list(encoded["input_ids"]), [bool(mask) for mask in encoded["assistant_masks"]])


def truncate(example: Example, *, context: int) -> Example:
    """Keep the first `context` tokens."""
    return Example(example.ids[:context], example.learned[:context])


@dataclass(frozen=True)
class PackCollator:
    """Rows of {"ids", "labels", "lengths"} → a batch, padded at the right end.

    Nothing needs an attention mask: positions restart with each example, the padding is an example of its own that
    no label asks about, and what is to the right is never seen.
    """

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return input_ids, labels, position_ids, each (batch, longest row)."""
        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), longest)
        ids = torch.full(shape, self.pad_id)
        labels = torch.full(shape, IGNORED)
        positions = torch.zeros(shape, dtype=torch.long)
        for number, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[number, :size] = torch.tensor(row["input_ids"])
            labels[number, :size] = torch.tensor(row["labels"])
            counted = [torch.arange(length) for length in (*row["lengths"], longest - size)]
            positions[number] = torch.cat(counted)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}


def rows_of(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> dict[str, list[list[int]]]:
    """Join the examples of each group into a row, as columns of a data set."""
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "lengths": []}
    for group in groups:
        members = [examples[index] for index in group]
        columns["input_ids"].append([token for member in members for token in member.ids])
        columns["labels"].append([label for member in members for label in _labels(member)])
        columns["lengths"].append([len(member.ids) for member in members])
    return columns


def _labels(example: Example) -> list[int]:
    """Mask what is not learned; the first token of an example follows nothing, so it is never a label."""
    pairs = zip(example.ids, example.learned, strict=True)
    labels = [token if learned else IGNORED for token, learned in pairs]
    return [IGNORED, *labels[1:]]
