"""What a model computed for earlier answers, kept for prompts that begin with the same tokens.

The idea is that of prefix caching, as in SGLang's RadixAttention (arXiv 2312.07104), here without its tree.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

KEPT = 32
KEPT_BYTES = 2**30
"""How many caches are kept, and how much memory they have together."""

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, each (batch, heads, seq, head size)."""


class KeptCaches:
    """Keys and values of earlier answers, by their tokens; those used longest ago are let go first."""

    def __init__(self, most: int = KEPT, most_bytes: int = KEPT_BYTES) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.entries: list[tuple[list[int], Layers]] = []

    def longest(self, ids: Sequence[int]) -> tuple[int, Layers]:
        """Return how many of the first tokens are known, and copies of their keys; the last token is always to read."""
        best, where = 0, -1
        for place, (known, _) in enumerate(self.entries):
            if (same := _common(known, ids)) > best:
                best, where = same, place
        if not (best := min(best, len(ids) - 1)):
            return 0, []
        self.entries.append(entry := self.entries.pop(where))
        return best, [(keys[:, :, :best].clone(), values[:, :, :best].clone()) for keys, values in entry[1]]

    def add(self, ids: list[int], layers: Layers) -> None:
        """Keep an answer's cache, in place of those that it goes on from."""
        self.entries = [entry for entry in self.entries if _common(entry[0], ids) < len(entry[0])]
        self.entries.append((ids, layers))
        while len(self.entries) > self.most or self.nbytes > self.most_bytes:
            del self.entries[0]

    @property
    def nbytes(self) -> int:
        """How much memory is kept."""
        return sum(tensor.nbytes for _, layers in self.entries for layer in layers for tensor in layer)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    short = min(len(left), len(right))
    return next((place for place in range(short) if left[place] != right[place]), short)
