"""Sampling answers: a protocol, and the sampler that uses transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


@dataclass(frozen=True)
class Answer:
    """A sampled answer: its tokens up to and with the end token, if it came to one."""

    ids: list[int]
    finished: bool
    logps: list[float] | None = None
    """Log-probabilities in nats of its tokens, as the sampler has them, where it tells."""


class Sampler(Protocol):
    """What asks a policy for answers."""

    def sample(self, policy: PreTrainedModel, prompts: Sequence[list[int]], *, seed: int) -> list[Answer]:
        """Return one answer for each prompt; the same seed and weights give the same answers."""
        ...


@dataclass(frozen=True)
class Generate:
    """Samples in this process, a batch of left-padded prompts at a time.

    No top-k, top-p or penalty: log-probabilities are taken of the plain distribution at this temperature, and
    anything else sampled would bias every update.
    """

    end_ids: tuple[int, ...]
    pad_id: int
    max_new_tokens: int
    temperature: float
    batch: int = 256

    @torch.no_grad()
    def sample(self, policy: PreTrainedModel, prompts: Sequence[list[int]], *, seed: int) -> list[Answer]:
        """Return one answer for each prompt."""
        answers: list[Answer] = []
        was_training = policy.training
        policy.eval()
        devices = [policy.device] if policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for first in range(0, len(prompts), self.batch):
                made = self._generate(policy, prompts[first : first + self.batch])
                answers += [cut(row, end_ids=self.end_ids) for row in made.tolist()]
        policy.train(was_training)
        return answers

    def _generate(self, policy: PreTrainedModel, prompts: Sequence[list[int]]) -> Tensor:
        """Return the tokens after the prompts, (answers, new tokens), padded on the right."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[self.pad_id] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        config = GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.end_ids),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        with no_saved_habits(policy):
            made: Tensor = policy.generate(
                input_ids=ids.to(policy.device),
                attention_mask=mask.to(policy.device),
                generation_config=config,
            )
        return made[:, longest:].cpu()


@contextmanager
def no_saved_habits(policy: PreTrainedModel) -> Iterator[None]:
    """Put a model's own generation config aside.

    transformers 5.23 fills in from it what a call leaves unset: a repetition penalty that a model came with (Qwen's
    1.1) would change what is sampled, and not the log-probabilities that are taken of it.
    """
    inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    saved, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = saved


def cut(row: list[int], *, end_ids: Sequence[int]) -> Answer:
    """Cut a row behind its first end token. Never by the pad token: where pad is an end token, ends would vanish."""
    end = next((place for place, token in enumerate(row) if token in end_ids), None)
    return Answer(row, False) if end is None else Answer(row[: end + 1], True)
