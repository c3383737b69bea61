"""What a model sees in a text: its tokens, what it takes to be likely at each place, and where its heads look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.errors import StageError, UsageError
from llmpipe.settings import AnySource, Artifact
from llmpipe.training import models

KINDS: tuple[Artifact, ...] = ("causal-lm", "masked-lm", "seq2seq-lm")
HABIT = 0.5
"""The share of a head's attention that makes a habit."""
TOP = 5
HINT = "inspect takes decoders, encoders and encoder-decoders that guess tokens"


@dataclass(frozen=True)
class Side:
    """The tokens that go into a model, or into one of its two halves."""

    tokens: list[str]
    ids: list[int]


@dataclass(frozen=True)
class Guess:
    """What a model takes to be likely at a place: the token that follows it, or the one that was hidden there."""

    side: str
    position: int
    top: list[tuple[str, float]]
    probability: float | None
    """Of the token that is really there; None where the text ends."""


@dataclass(frozen=True)
class Attention:
    """Where the heads look. `rows` is the side that looks, `columns` the one that is looked at."""

    name: str
    rows: str
    columns: str
    layers: list[int]
    weights: Tensor
    """(layers, heads, rows, columns); each row sums to 1."""

    def mean(self) -> list[list[float]]:
        """Return the mean over all layers and heads, (rows, columns)."""
        return self.weights.mean((0, 1)).tolist()

    def habits(self) -> list[list[tuple[str, float]]]:
        """Return for each layer and head where it mostly looks and how much; or over how many tokens it spreads."""
        return [[_habit(head, is_self=self.rows == self.columns) for head in layer] for layer in self.weights]


def _habit(weights: Tensor, *, is_self: bool) -> tuple[str, float]:
    """Name what a head (rows, columns) mostly looks at; the first row of a decoder has no choice, and is left out."""
    rows = weights[1:] if is_self and len(weights) > 1 else weights
    shares = {"first": rows[:, 0].mean()}
    if is_self and len(weights) > 1:
        shares |= {"itself": weights.diagonal()[1:].mean(), "before": weights.diagonal(-1).mean()}
        shares |= {"after": weights.diagonal(1).mean()}
    most = max(shares, key=lambda habit: float(shares[habit]))
    if shares[most] >= HABIT:
        return most, float(shares[most])
    entropy = -(rows * rows.clamp(min=1e-12).log()).sum(-1).mean()
    return "spread", float(entropy.exp())


@dataclass(frozen=True)
class Look:
    """All that there is to see."""

    family: str
    model_type: str
    parameters: int
    sides: dict[str, Side]
    guesses: list[Guess]
    attentions: list[Attention]
    notes: list[str] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """Return it for JSON; attention is rounded to four digits."""
        return {
            "family": self.family,
            "model_type": self.model_type,
            "parameters": self.parameters,
            "notes": self.notes,
            "sides": {name: asdict(side) for name, side in self.sides.items()},
            "guesses": [asdict(guess) for guess in self.guesses],
            "attention": [
                {
                    "name": one.name,
                    "rows": one.rows,
                    "columns": one.columns,
                    "layers": one.layers,
                    "weights": [
                        [[[round(share, 4) for share in row] for row in head] for head in layer]
                        for layer in one.weights.tolist()
                    ],
                }
                for one in self.attentions
            ],
        }


def look(source: AnySource, ctx: Context, text: str, *, target: str | None, most_tokens: int) -> Look:
    """Load a model and look at the first tokens of a text through it, `most_tokens` of them or as many as it sees.

    Raises:
        StageError: it cannot be loaded, guesses no tokens, or does not show its attention.
        UsageError: there is a target, and no decoder to read it beside an encoder.
    """
    model, tokenizer = models.load(source, ctx, kinds=KINDS)
    kind = models.kind_of(model.config, KINDS)
    if target is not None and kind != "seq2seq-lm":
        message = f"--target is for encoder-decoders, and this is {models.CALLED[kind]}"
        raise UsageError(message, hint="leave out --target")
    model.set_attn_implementation("eager")  # the others do not keep the weights
    model.eval()
    notes: list[str] = []
    ids = _written(text, tokenizer, min(most_tokens, models.context_length(model)), notes)
    with torch.no_grad():
        if kind == "seq2seq-lm":
            answer = [] if target is None else _written(target, tokenizer, most_tokens, notes, is_target=True)
            sides, guesses, attentions = _two_sides(model, tokenizer, ids, answer)
        else:
            sides, guesses, attentions = _one_side(model, tokenizer, ids, is_masked=kind == "masked-lm")
    family = {"causal-lm": "decoder", "masked-lm": "encoder", "seq2seq-lm": "encoder-decoder"}[kind]
    found = [_attention(model, *one, notes) for one in attentions]
    named = {name: Side([_piece(tokenizer, number) for number in own], own) for name, own in sides.items()}
    return Look(family, model.config.model_type, model.num_parameters(), named, guesses, found, notes)


def _written(text: str, tokenizer: Tokenizer, most: int, notes: list[str], *, is_target: bool = False) -> list[int]:
    ids: list[int] = tokenizer(**{"text_target" if is_target else "text": text}, verbose=False)["input_ids"]
    if not ids:
        raise StageError("the tokenizer makes no token of this text", hint="write another")
    if len(ids) > most:
        notes.append(f"the {'target' if is_target else 'text'} has {len(ids)} tokens; the first {most} are shown")
    return ids[:most]


Found = tuple[dict[str, list[int]], list[Guess], list[tuple[str, str, str, Sequence[Tensor | None] | None]]]


def _one_side(model: PreTrainedModel, tokenizer: Tokenizer, ids: list[int], *, is_masked: bool) -> Found:
    given = torch.tensor([ids])
    out = model(input_ids=given, output_attentions=True, **({} if is_masked else {"use_cache": False}))
    if is_masked:
        guesses = _hidden_in_turn(model, tokenizer, ids)
    else:
        guesses = _following(out.logits[0], ids, tokenizer, side="tokens")
    return {"tokens": ids}, guesses, [("of the tokens", "tokens", "tokens", out.attentions)]


def _two_sides(model: PreTrainedModel, tokenizer: Tokenizer, ids: list[int], answer: list[int]) -> Found:
    start = model.config.decoder_start_token_id
    seen = [tokenizer.pad_token_id if start is None else start, *answer]
    out = model(
        input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([seen]), output_attentions=True, use_cache=False
    )
    guesses = _following(out.logits[0], seen, tokenizer, side="decoder")
    return (
        {"encoder": ids, "decoder": seen},
        guesses,
        [
            ("of the encoder", "encoder", "encoder", out.encoder_attentions),
            ("of the decoder", "decoder", "decoder", out.decoder_attentions),
            ("from decoder to encoder", "decoder", "encoder", out.cross_attentions),
        ],
    )


def _following(logits: Tensor, ids: list[int], tokenizer: Tokenizer, *, side: str) -> list[Guess]:
    """Return what follows each token, from logits (seq, vocabulary)."""
    nexts = [*ids[1:], None]
    return [
        _guess(row.float().softmax(-1), tokenizer, side, position, true)
        for position, (row, true) in enumerate(zip(logits, nexts, strict=True))
    ]


def _hidden_in_turn(model: PreTrainedModel, tokenizer: Tokenizer, ids: list[int]) -> list[Guess]:
    """Hide each token but the special ones, one at a time, and return what may have been there."""
    if tokenizer.mask_token_id is None:
        raise StageError("the tokenizer has no mask token to hide others behind", hint=HINT)
    places = [position for position, number in enumerate(ids) if number not in tokenizer.all_special_ids]
    guesses = []
    for position in places:
        hidden = torch.tensor([ids])
        hidden[0, position] = tokenizer.mask_token_id
        shares = model(input_ids=hidden).logits[0, position].float().softmax(-1)
        guesses.append(_guess(shares, tokenizer, "tokens", position, ids[position]))
    return guesses


def _guess(shares: Tensor, tokenizer: Tokenizer, side: str, position: int, true: int | None) -> Guess:
    best = shares.topk(min(TOP, len(shares)))
    top = [
        (_piece(tokenizer, number), share)
        for number, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return Guess(side, position, top, None if true is None else float(shares[true]))


def _attention(
    model: PreTrainedModel, name: str, rows: str, columns: str, found: Sequence[Tensor | None] | None, notes: list[str]
) -> Attention:
    """Gather what the layers showed; some models have layers of another kind in between."""
    layers = {number: weights[0].float() for number, weights in enumerate(found or ()) if weights is not None}
    if not layers:
        raise StageError(f"{model.config.model_type} does not show its attention", hint=HINT)
    if len(layers) < len(found or ()):
        notes.append(f"attention {name}: {len(layers)} of {len(found or ())} layers have some")
    return Attention(name, rows, columns, list(layers), torch.stack(list(layers.values())))


def _piece(tokenizer: Tokenizer, number: int) -> str:
    """Write a token as it stands in text, with the space before it; a part of a character as the tokenizer names it."""
    piece = tokenizer.convert_ids_to_tokens(number)
    text: str = tokenizer.decode([number], skip_special_tokens=False)
    if piece is None:
        return f"[{number}]"
    if piece.startswith("##") or "\ufffd" in text or not text:
        return str(piece)
    return f" {text.lstrip()}" if piece.startswith("▁") and not text.startswith(" ") else text
