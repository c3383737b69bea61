"""One rollout: prompts → answers → scores → what PPO learns from, and the order in which it does."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.errors import StageError
from llmpipe.training.ppo import core
from llmpipe.training.ppo.policy_value import PolicyValue, Reference, Sequences, joined
from llmpipe.training.ppo.rollout import Answer, Sampler
from llmpipe.training.ppo.scoring import Asked, Rewards
from llmpipe.training.ppo.shared import AdapterReference

FAR_APART = 0.1  # nats per token; bf16 instead of fp32 makes a few hundredths
ENTROPY_TOKENS = 512  # of a rollout and process; enough for two figures


@dataclass(frozen=True)
class Penalties:
    """What an answer loses whatever it says."""

    missing_end: float
    long_from: int | None
    long_until: int
    long_most: float

    def of(self, answers: Sequence[Answer]) -> Tensor:
        """Return reward units, (answers,)."""
        lengths = torch.tensor([len(answer.ids) for answer in answers], dtype=torch.float64)
        lost = torch.tensor([0.0 if answer.finished else self.missing_end for answer in answers], dtype=torch.float64)
        if self.long_from is not None:
            lost += core.overlong(lengths, begin=self.long_from, end=self.long_until, most=self.long_most)
        return lost


@dataclass(frozen=True)
class Scored:
    """Answers and what they were given."""

    answers: list[Answer]
    texts: list[str]
    components: Tensor
    """(answers, components), as the scorers gave them."""
    penalties: Tensor
    """(answers,), reward units that each answer loses whatever it says."""


@dataclass
class Experience:
    """What PPO learns from: answers with log-probabilities, values, advantages and returns of their tokens.

    Per-token tensors are (answers, longest answer), padded on the right.
    """

    sequences: Sequences
    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, for a checkpoint."""
        sequences = {name: getattr(self.sequences, name) for name in ("ids", "prompt_lengths", "lengths")}
        return sequences | {name: getattr(self, name) for name in ("logps", "values", "advantages", "returns")}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Experience:
        """Make one from what `tensors` gave."""
        rest = {name: tensors[name] for name in ("logps", "values", "advantages", "returns")}
        return cls(Sequences(tensors["ids"], tensors["prompt_lengths"], tensors["lengths"]), **rest)

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Return the tensors of some answers; those of tokens without padding, (tokens,), row by row."""
        chosen = torch.tensor(rows)
        sequences = self.sequences.rows(chosen)
        mask = self.sequences.mask()[chosen]
        tokens = {name: getattr(self, name)[chosen][mask] for name in ("logps", "values", "advantages", "returns")}
        return {
            "input_ids": sequences.ids,
            "prompt_lengths": sequences.prompt_lengths,
            "lengths": sequences.lengths,
            **tokens,
        }


@dataclass
class Collector:
    """Makes experience with the policy as it is."""

    model: PolicyValue
    reference: Reference | AdapterReference
    sampler: Sampler
    rewards: Rewards
    penalties: Penalties
    tokenizer: Tokenizer
    discount: float
    gae_lambda: float
    tokens_per_pass: int
    report: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def answer(self, policy: PreTrainedModel, asked: Sequence[Asked], *, seed: int) -> Scored:
        """Sample an answer to each prompt and score it."""
        self.report("sampling")
        begun = time.perf_counter()
        answers = self.sampler.sample(policy, [one.ids for one in asked], seed=seed)
        self._took("sampling", begun)
        return self.score(asked, answers)

    def score(self, asked: Sequence[Asked], answers: list[Answer]) -> Scored:
        """Score answers, end tokens and all."""
        self.report("scoring")
        begun = time.perf_counter()
        texts = self.tokenizer.batch_decode([answer.ids for answer in answers], skip_special_tokens=True)
        components = self.rewards.components(asked, answers, texts)
        self._took("scoring", begun)
        return Scored(answers, texts, components, self.penalties.of(answers))

    def rewards_of(self, scored: Scored) -> Tensor:
        """Return what each answer is worth, (answers,); not finite where it could not be scored."""
        return self.rewards.total(scored.components) - scored.penalties

    @torch.no_grad()
    def experience(
        self, asked: Sequence[Asked], scored: Scored, *, beta: float
    ) -> tuple[Experience, dict[str, Any], float]:
        """Turn scored answers into experience.

        An answer without a finite score or without tokens is left out of every mean: it has no tokens to learn from.

        Returns:
            The experience, the metrics over all processes, and the largest |log pi - log ref| of a token here.
        """
        self.report("reading")
        begun = time.perf_counter()
        worth = self.rewards_of(scored)
        usable = worth.isfinite()
        sequences = self.sequences(asked, scored, usable)
        mask = sequences.mask()
        logps, values, log_ratios = self.read(sequences)
        finite = torch.where(usable, worth, 0.0).float().to(mask.device)
        rewards = core.token_rewards(finite, log_ratios, mask, beta=beta)
        advantages, returns = core.advantages_and_returns(
            rewards, values, mask, discount=self.discount, gae_lambda=self.gae_lambda
        )
        entropy = self.model.entropy(sequences, most_tokens=ENTROPY_TOKENS)
        advantages, deviation = core.whitened(advantages, mask)
        metrics = self.metrics(scored, log_ratios) | {
            "entropy": core.moments(entropy)[1],
            "advantage_deviation": deviation,
            "explained_variance": core.explained_variance(values[mask], returns[mask]),
            "value": core.moments(values[mask])[1],
            "returns_deviation": math.sqrt(core.moments(returns[mask])[2]),
        }
        mismatch = sampler_mismatch(scored.answers, usable, logps, mask)
        metrics |= {} if mismatch is None else {"sampler_mismatch": mismatch}
        self._took("reading", begun)
        furthest = float(log_ratios.abs().max()) if mask.any() else 0.0
        return Experience(sequences, logps, values, advantages, returns), metrics, furthest

    def sequences(self, asked: Sequence[Asked], scored: Scored, usable: Tensor) -> Sequences:
        """Join prompts and answers; those that are of no use have no tokens."""
        kept = [answer.ids if ok else [] for answer, ok in zip(scored.answers, usable.tolist(), strict=True)]
        joint = joined([one.ids for one in asked], kept, pad_id=self.tokenizer.pad_token_id)
        return joint.to(self.model.policy.device)

    @torch.no_grad()
    def read(self, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        """Return log pi, values, and log pi - log ref, each (answers, longest answer), 0 after the end."""
        mask = sequences.mask()
        logps, values, reference = (torch.zeros(mask.shape, device=mask.device) for _ in range(3))
        for rows in self.passes(sequences):
            part = sequences.rows(rows)
            at = mask & torch.isin(torch.arange(len(mask), device=mask.device), rows)[:, None]
            logps[at], values[at] = self.model(part.ids, part.prompt_lengths, part.lengths)
            reference[at] = self.reference(self.model, part)
        return logps, values, logps - reference

    def passes(self, sequences: Sequences) -> list[Tensor]:
        """Group the rows by length into forward passes of at most `tokens_per_pass` tokens with padding."""
        total = sequences.prompt_lengths + sequences.lengths
        groups: list[list[int]] = [[]]
        for row in torch.argsort(total, descending=True, stable=True).tolist():
            if groups[-1] and (len(groups[-1]) + 1) * int(total[groups[-1][0]]) > self.tokens_per_pass:
                groups.append([])
            groups[-1].append(row)
        return [torch.tensor(sorted(group), device=total.device) for group in groups if group]

    def metrics(self, scored: Scored, log_ratios: Tensor) -> dict[str, Any]:
        """Return means over all processes' answers that were scored; KL in nats per answer."""
        worth = self.rewards_of(scored)
        usable = worth.isfinite()
        places = torch.nonzero(usable).squeeze(-1).tolist()
        lengths = torch.tensor([float(len(scored.answers[place].ids)) for place in places])
        ended = torch.tensor([float(scored.answers[place].finished) for place in places])
        kl = log_ratios.sum(-1).cpu()[usable]
        count, mean, variance = core.moments(worth[usable])
        components = {
            f"reward_{name}": core.moments(scored.components[usable, column])[1]
            for column, name in enumerate(self.rewards.names)
        }
        return {
            "reward": mean,
            "reward_deviation": math.sqrt(variance),
            **components,
            "kl": core.moments(kl)[1],
            "kl_per_token": core.all_sum(kl.sum()) / max(1.0, core.all_sum(lengths.sum())),
            "length": core.moments(lengths)[1],
            "ended_share": core.moments(ended)[1],
            "unique_share": core.all_sum(len({scored.texts[place] for place in places})) / max(1, count),
            "skipped": int(core.all_sum((~usable).sum())),
            "reward_length_correlation": correlation(worth[usable], lengths),
        }

    def _took(self, phase: str, begun: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begun


def sampler_mismatch(answers: Sequence[Answer], usable: Tensor, logps: Tensor, mask: Tensor) -> float | None:
    """Return the mean |log pi - log p| per token between the policy and a sampler that tells p; None if it does not.

    Args:
        answers: with the sampler's log-probabilities.
        usable: (answers,), those that are learned from.
        logps: (answers, longest answer), the policy's.
        mask: (answers, longest answer), the tokens of usable answers.

    Raises:
        StageError: the sampler is another model than the policy.
    """
    if any(answer.logps is None for answer in answers):
        return None
    told = [logp for answer, ok in zip(answers, usable.tolist(), strict=True) if ok for logp in answer.logps or ()]
    apart = logps[mask].double().cpu() - torch.tensor(told, dtype=torch.float64)
    mismatch = core.moments(apart.abs())[1]
    if not mismatch <= FAR_APART:
        raise StageError(
            f"the sampler's log-probabilities are {mismatch:.2g} nats per token away from the policy's: "
            "the answers are another model's",
            hint="does the server have the same base, and use the adapter that it is sent? At a temperature other than "
            "1, start it with --logprobs-mode processed_logprobs",
        )
    return mismatch


def correlation(left: Tensor, right: Tensor) -> float | None:
    """Return Pearson's correlation over all processes; None where either does not vary."""
    _, mean_left, variance_left = core.moments(left)
    _, mean_right, variance_right = core.moments(right)
    if variance_left <= 1e-12 or variance_right <= 1e-12:
        return None
    products = (left.double() - mean_left) * (right.double() - mean_right)
    count = core.all_sum(len(left))
    return core.all_sum(products.sum()) / (count - 1) / math.sqrt(variance_left * variance_right)


@dataclass
class MicroBatch:
    """One forward and backward pass of a plan: which answers, and what stands at its end."""

    rows: list[int]
    tokens: int
    """Tokens of the whole minibatch over all processes: what its loss is a mean over."""
    ends_minibatch: bool


def plan(lengths: Sequence[int], *, epochs: int, minibatches: int, passes: int, seed: int) -> list[MicroBatch]:
    """Plan the optimizer steps of a rollout: fresh minibatches each epoch, cut into passes of similar lengths.

    Sorting within a minibatch changes the padding and nothing else, for its loss is one mean over its tokens.
    """
    planned: list[MicroBatch] = []
    shuffled = random.Random(seed)
    size = len(lengths) // minibatches
    for _ in range(epochs):
        order = list(range(len(lengths)))
        shuffled.shuffle(order)
        for first in range(0, size * minibatches, size):
            rows = sorted(order[first : first + size], key=lambda row: lengths[row])
            tokens = int(core.all_sum(sum(lengths[row] for row in rows)))
            cuts = [round(size * number / passes) for number in range(passes + 1)]
            parts = [rows[start:stop] for start, stop in pairwise(cuts)]
            planned += [MicroBatch(part, tokens, part is parts[-1]) for part in parts]
    return planned
