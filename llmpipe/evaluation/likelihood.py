"""How likely a model finds a text after another one, many pairs at a time.

Pairs are cut into tokens the way lm-eval cuts them (`TemplateLM._encode_pair`), so that figures are comparable.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

Pair = tuple[list[int], list[int]]
"""What comes before, at least one token, and what is scored."""


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

    Pairs of like length share a batch of `batch_tokens` tokens at most. What is scored may not be longer than `window`.
    """
    most = batch_tokens or (2048 if model.device.type == "cpu" else 16384)
    keys = [(tuple(before[-max(1, window + 1 - len(after)) :]), tuple(after)) for before, after in pairs]
    waiting = sorted(dict.fromkeys(keys), key=lambda pair: (-len(pair[0]) - len(pair[1]), pair))
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], Likelihood] = {}
    while waiting:
        size = max(1, most // (len(waiting[0][0]) + len(waiting[0][1]) - 1))
        batch, waiting = waiting[:size], waiting[size:]
        found |= zip(batch, _scored(model, batch), strict=True)
    return [found[key] for key in keys]


def _scored(model: PreTrainedModel, batch: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[Likelihood]:
    """Score one batch; what is padded lies to the right, where a causal model does not look."""
    longest = max(len(before) + len(after) for before, after in batch) - 1
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, (before, after) in enumerate(batch):
        ids[row, : len(before) + len(after) - 1] = torch.tensor([*before, *after[:-1]])
    first = min(len(before) for before, _ in batch) - 1
    # the logits before `first` are needed for no row, and a vocabulary makes them the dearest part of a small model
    keep = {"logits_to_keep": longest - first} if _takes_logits_to_keep(model) else {}
    logits = model(input_ids=ids.to(model.device), use_cache=False, **keep).logits[:, -(longest - first) :]
    for row, (before, after) in enumerate(batch):
        start = len(before) - 1 - first
        log_probs = logits[row, start : start + len(after)].float().log_softmax(-1)  # (scored, vocabulary)
        targets = torch.tensor(after, device=log_probs.device)
        nats = log_probs.gather(1, targets[:, None]).sum()
        yield Likelihood(float(nats), bool((log_probs.argmax(-1) == targets).all()))


def _takes_logits_to_keep(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
