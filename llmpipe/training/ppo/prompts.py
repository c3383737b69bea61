"""The stream of prompts: its own permutations, the same on any number of processes, and resumable."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass


@dataclass
class PromptStream:
    """Deals out the indices of `count` prompts, each once before any repeats, in a new order each time round."""

    count: int
    seed: int
    epoch: int = 0
    position: int = 0

    def take(self, number: int) -> list[int]:
        """Return the next indices."""
        taken: list[int] = []
        while len(taken) < number:
            order = list(range(self.count))
            random.Random(self.seed * 1_000_003 + self.epoch).shuffle(order)
            part = order[self.position : self.position + number - len(taken)]
            taken += part
            self.position += len(part)
            if self.position == self.count:
                self.epoch, self.position = self.epoch + 1, 0
        return taken

    def state(self) -> dict[str, int]:
        """Return what a checkpoint keeps."""
        return asdict(self)
