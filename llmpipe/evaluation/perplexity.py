"""How well a model guesses text: nats and perplexity per token, bits per byte.

Bits per byte compare models with different tokenizers; perplexities do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass
class Score:
    """Sums over scored text."""

    nats: float = 0.0
    tokens: int = 0
    characters: int = 0
    bytes: int = 0
    texts: list[Score] = field(default_factory=list)
    """The same by text; of a text's own there are none."""

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood of a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean nats per token."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits to write one byte of the text down, as the model would compress it."""
        return self.nats / math.log(2) / self.bytes

    @property
    def nats_per_character(self) -> float:
        """Mean nats for one character, the figure of character-level models."""
        return self.nats / self.characters


@torch.no_grad()
def score_texts(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    window: int,
    max_tokens: int | None = None,
    batch_tokens: int = 16384,
    add_bos: bool = True,
) -> Score:
    """Score every token of the texts once.

    A text is cut into windows of `window` tokens that share one token with their neighbour, so that a token is
    guessed from those before it in its window. With `add_bos` the first token of a text is guessed from the begin
    token; without (or for a tokenizer that has none), it is left out, as it follows nothing. After the text in which
    `max_tokens` are reached, no further one is read.
    """
    score = Score()
    bos = [tokenizer.bos_token_id] if add_bos and tokenizer.bos_token_id is not None else []
    windows: list[tuple[Score, list[int]]] = []
    taken = 0
    for text in texts:
        ids = bos + tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        own = Score(characters=len(text), bytes=len(text.encode("utf-8")))
        score.texts.append(own)
        score.characters += own.characters
        score.bytes += own.bytes
        windows += [(own, ids[first : first + window + 1]) for first in range(0, max(1, len(ids) - 1), window)]
        if len(windows) * window >= 8 * batch_tokens:
            _score_windows(model, windows, score, batch_tokens=batch_tokens)
            windows.clear()
        taken += len(ids)
        if max_tokens is not None and taken >= max_tokens:
            break
    _score_windows(model, windows, score, batch_tokens=batch_tokens)
    return score


def _score_windows(
    model: PreTrainedModel, windows: list[tuple[Score, list[int]]], score: Score, *, batch_tokens: int
) -> None:
    """Add the windows' nats and tokens to a score and to those of their texts.

    Windows of like length share a batch (batch, longest).
    """
    windows = sorted((one for one in windows if len(one[1]) > 1), key=lambda one: len(one[1]), reverse=True)
    while windows:
        size = max(1, batch_tokens // len(windows[0][1]))
        batch, windows = windows[:size], windows[size:]
        ids = torch.zeros(len(batch), len(batch[0][1]), dtype=torch.long)
        real = torch.zeros_like(ids, dtype=torch.bool)
        for row, (_, window) in enumerate(batch):
            ids[row, : len(window)] = torch.tensor(window)
            real[row, : len(window)] = True
        ids, real = ids.to(model.device), real.to(model.device)
        # what is padded lies to the right, where a causal model does not look
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        nats *= real[:, 1:]
        score.nats += float(nats.sum())
        score.tokens += int(real[:, 1:].sum())
        for (own, window), row_nats in zip(batch, nats.sum(dim=1).tolist(), strict=True):
            own.nats += row_nats
            own.tokens += len(window) - 1
