"""How likely a model finds a text after another one, many pairs at a time.

Pairs are cut into tokens the way lm-eval cuts them (`TemplateLM._encode_pair`), so that figures are comparable.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Pair = tuple[list[int], list[int]]
"""What comes before, at least one token, and what is scored."""
Key = tuple[tuple[int, ...], tuple[int, ...]]
"""A pair, cut to what the model sees."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one pair: the sum of the log-probabilities of its scored tokens in nats, and whether each is the likeliest."""

    nats: float
    is_greedy: bool


def encoded(tokenizer: Tokenizer, before: str, after: str) -> Pair:
    """Cut a text and what follows it into tokens as one text, with the special tokens that the tokenizer adds itself.

    Spaces at the end of `before` belong to what follows, as most vocabularies have it. An empty `before` is the begin
    token, or the end token where there is none.
    """
    text = before.rstrip()
    after = before[len(text) :] + after
    if not text:
        return [prefix_token(tokenizer)], tokenizer(after, add_special_tokens=False)["input_ids"]
    begun = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    options = {"add_special_tokens": False} if begun else {}
    first, whole = (tokenizer(part, **options)["input_ids"] for part in (text, text + after))
    return first, whole[len(first) :]


def prefix_token(tokenizer: Tokenizer) -> int:
    """Return the token that a text is guessed from where nothing comes before it."""
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert isinstance(token, int)
    return token


def rolling(tokens: Sequence[int], *, prefix: int | None, window: int) -> Iterator[Pair]:
    """Cut a text into pairs that score each token once, in windows of `window` tokens.

    The first token is guessed from `prefix`; without, it is left out. The last window reaches back to be full, as it
    does in lm-eval (`get_rolling_token_windows`).
    """
    whole = [*tokens] if prefix is None else [prefix, *tokens]
    done = 1
    while done < len(whole):
        end = min(done + window, len(whole))
        yield whole[max(0, end - window - 1) : done], whole[done:end]
        done = end


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel, pairs: Sequence[Pair], *, window: int, batch_tokens: int | None = None
) -> list[Likelihood]:
    """Score pairs, each cut on the left to what the model sees; equal ones are looked at once.

    Pairs of like length share a batch of `batch_tokens` tokens at most, and pairs that begin alike share what the model
    makes of their beginning. What is scored may not be longer than `window`.
    """
    most = batch_tokens or (2048 if model.device.type == "cpu" else 16384)
    keys = [(tuple(before[-max(1, window + 1 - len(after)) :]), tuple(after)) for before, after in pairs]
    # the choices of a question lie side by side, questions by length
    waiting = sorted(dict.fromkeys(keys), key=lambda pair: (-len(pair[0]), pair[0], -len(pair[1]), pair[1]))
    can_share = _can_share(model)
    found: dict[Key, Likelihood] = {}
    for batch in _batches(waiting, most):
        found |= zip(batch, _scored(model, batch, can_share=can_share), strict=True)
    return [found[key] for key in keys]


def _batches(pairs: Sequence[Key], most: int) -> Iterator[list[Key]]:
    """Cut pairs into batches of `most` tokens, padding included; a longer pair is a batch of its own."""
    batch: list[Key] = []
    longest = 0
    for before, after in pairs:
        longest = max(longest, len(before) + len(after) - 1)
        if batch and longest * (len(batch) + 1) > most:
            yield batch
            batch, longest = [], len(before) + len(after) - 1
        batch.append((before, after))
    if batch:
        yield batch


def _scored(model: PreTrainedModel, batch: Sequence[Key], *, can_share: bool) -> Iterator[Likelihood]:
    """Score one batch; what is padded lies to the right, where a causal model does not look."""
    first = min(len(before) for before, _ in batch) - 1  # the first logits that are needed
    beginnings = list(dict.fromkeys(before[:first] for before, _ in batch))
    shared = first if can_share and len(beginnings) < len(batch) else 0
    options: dict[str, Any] = {"use_cache": False}
    if shared:
        options = {"cache": _looked_at(model, beginnings, [before[:first] for before, _ in batch])}
    longest = max(len(before) + len(after) for before, after in batch) - 1
    ids = torch.zeros(len(batch), longest - shared, dtype=torch.long)
    for row, (before, after) in enumerate(batch):
        rest = [*before, *after[:-1]][shared:]
        ids[row, : len(rest)] = torch.tensor(rest)
    logits = model(input_ids=ids.to(model.device), **_last(model, longest - first), **options).logits
    logits = logits[:, -(longest - first) :]
    for row, (before, after) in enumerate(batch):
        start = len(before) - 1 - first
        log_probs = logits[row, start : start + len(after)].float().log_softmax(-1)  # (scored, vocabulary)
        targets = torch.tensor(after, device=log_probs.device)
        nats = log_probs.gather(1, targets[:, None]).sum()
        yield Likelihood(float(nats), bool((log_probs.argmax(-1) == targets).all()))


def _looked_at(model: PreTrainedModel, beginnings: list[tuple[int, ...]], rows: Sequence[tuple[int, ...]]) -> Cache:
    """Look at beginnings of one length once each; returns their keys and values, as each row needs them."""
    ids = torch.tensor(beginnings, device=model.device)
    cache: Cache = model(input_ids=ids, use_cache=True, **_last(model, 1)).cache
    place = {beginning: number for number, beginning in enumerate(beginnings)}
    cache.batch_select_indices(torch.tensor([place[row] for row in rows], device=model.device))
    return cache


def _can_share(model: PreTrainedModel) -> bool:
    """Whether all that the model keeps of a beginning are keys and values; a recurrent state takes no longer text."""
    if "cache" not in inspect.signature(model.forward).parameters:
        return False
    return {type(layer) for layer in DynamicCache(config=model.config).layers} <= {
        DynamicLayer, DynamicSlidingWindowLayer
    }  # fmt: skip


def _last(model: PreTrainedModel, count: int) -> dict[str, int]:
    """Ask for the last logits only, where one can: a vocabulary makes them the dearest part of a small model."""
    takes_it = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if takes_it else {}
