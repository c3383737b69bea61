"""The size dial: a parameter count → the shape of a model of one of the three families.

`causal` is a Llama, `masked` a ModernBERT (arXiv:2412.13663), `denoising` a T5 with gated feed-forward parts
(arXiv:2002.05202), whose encoder and decoder are equally deep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llmpipe.errors import StageError

DIAL_SLACK = 0.15

Shape = dict[str, Any]

FAMILIES = {"causal": "llama", "masked": "modernbert", "denoising": "t5"}
"""The architecture that `size:` gives for each objective, as transformers names it."""

BUCKETS = 32  # of T5's relative positions, for each head of the encoder and of the decoder


def dial(size: int, *, vocab_size: int, objective: str = "causal") -> Shape:
    """Turn a parameter count into a model's shape.

    The rule: depth is the number of layers (at least 2) whose model of width 64 x depth comes nearest to the size, as
    a ratio; the width then goes in steps of 32 to what comes nearest at that depth. Heads are 32 wide below a width
    of 512, else 64; the feed-forward part is 8/3 of the width, rounded up to a multiple of 8; embeddings are tied.
    Where a large vocabulary makes steps of 32 too coarse, more than 15 % off, steps of 8 are taken, with heads to suit.

    Raises:
        StageError: the vocabulary alone takes more than the size.
    """

    def count(depth: int, width: int) -> int:
        return parameters(depth, width, vocab_size, objective=objective)

    def miss(depth: int, width: int) -> float:
        return abs(math.log(count(depth, width) / size))

    depth = min(range(2, 129), key=lambda depth: miss(depth, 64 * depth))
    for step in (32, 8):
        width = min(range(step, 64 * depth + 65, step), key=lambda width: miss(depth, width))
        if abs(count(depth, width) / size - 1) <= DIAL_SLACK:
            break
    else:
        message = f"no model of {size:,} parameters has a vocabulary of {vocab_size:,} tokens"
        raise StageError(message, hint="raise model.size, or lower vocab_size of the tokenizer")
    return _SHAPES[objective](depth, width, _head_width(width))


def parameters(depth: int, width: int, vocab_size: int, *, objective: str = "causal") -> int:
    """Count a family's parameters; tied embeddings are counted once."""
    feed_forward = 3 * width * _intermediate(width)
    layers = depth * (4 * width**2 + feed_forward + 2 * width)
    if objective == "masked":  # beside the layers: norms, the head's square and the bias of its output
        return vocab_size * (width + 1) + layers + width**2 + 2 * width
    if objective == "denoising":  # the decoder's layers look at the encoder, too
        looking = depth * (4 * width**2 + width)
        return vocab_size * width + 2 * layers + looking + 2 * width + 2 * BUCKETS * (width // _head_width(width))
    return vocab_size * width + layers + width


def _intermediate(width: int) -> int:
    return -(-8 * width // 3 // 8) * 8


def _head_width(width: int) -> int:
    return next(head for head in (64, 32, 16, 8) if width % head == 0 and (head < 64 or width >= 512))


def _llama(depth: int, width: int, head: int) -> Shape:
    heads = width // head
    return {
        "num_hidden_layers": depth,
        "hidden_size": width,
        "intermediate_size": _intermediate(width),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": True,
    }


def _modernbert(depth: int, width: int, head: int) -> Shape:
    return {
        "num_hidden_layers": depth,
        "hidden_size": width,
        "intermediate_size": _intermediate(width),
        "num_attention_heads": width // head,
    }


def _t5(depth: int, width: int, head: int) -> Shape:
    return {
        "num_layers": depth,
        "d_model": width,
        "d_ff": _intermediate(width),
        "d_kv": head,
        "num_heads": width // head,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,  # T5 1.1 turned it off for pretraining
    }


_SHAPES: dict[str, Callable[[int, int, int], Shape]] = {"causal": _llama, "masked": _modernbert, "denoising": _t5}
