"""The formulas of PPO for language models, as pure functions of tensors.

Rewards, values and advantages are (answers, tokens), padded on the right; `mask` is True on an answer's tokens, its
end token included, and on nothing after. The losses take the tokens alone, (tokens,), without padding.

Sources: GAE, Schulman 2016 (arXiv:1506.02438); the clipped objective, Schulman 2017 (arXiv:1707.06347); rewards and
the adaptive KL price, Ziegler 2019 (arXiv:1909.08593); details that matter, Huang 2024 (arXiv:2403.17031).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

MOST_LOG_RATIO = 20.0  # e^20: far beyond any clip, and still finite in fp32


def token_rewards(scores: Tensor, log_ratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Charge each token for leaving the reference, and add the answer's score at its last token.

    The charge is `beta * (log pi - log ref)`, the estimator k1: as a reward its policy gradient is that of
    KL(pi || ref). The lower-variance k3 is not offered, for as a reward it leads to another policy: in the bandit of
    tests/stages/test_ppo_optima.py, total variation .30 from the optimum, against .004.

    Args:
        scores: (answers,), in reward units.
        log_ratios: (answers, tokens), log pi - log ref of the tokens that were sampled, nats.
        mask: (answers, tokens).
        beta: reward units per nat.

    Returns:
        (answers, tokens), 0 after the last token. An answer without tokens gets nothing.
    """
    rewards = -beta * log_ratios * mask
    last = mask.sum(-1) - 1
    rows = torch.nonzero(last >= 0).squeeze(-1)
    return rewards.index_put((rows, last[rows]), scores[rows], accumulate=True)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Estimate advantages by GAE (arXiv:1506.02438, equation 16), and the returns that values are trained towards.

    `values[:, t]` is the value before token t. After the last token the value is 0: an answer that was cut off is
    over all the same, and pays `missing_end_penalty`.

    Returns:
        Advantages and returns, (answers, tokens), 0 outside the mask.
    """
    advantages = torch.zeros_like(rewards)
    ahead = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else rewards.new_zeros(len(rewards))
    next_value = torch.zeros_like(ahead)
    for token in reversed(range(rewards.shape[1])):
        here = mask[:, token]
        delta = rewards[:, token] + discount * next_value - values[:, token]
        ahead = torch.where(here, delta + discount * gae_lambda * ahead, 0.0)
        next_value = torch.where(here, values[:, token], 0.0)
        advantages[:, token] = ahead
    return advantages, (advantages + values) * mask


def whitened(values: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """Shift and scale to mean 0 and deviation 1 over the mask and over all processes.

    Returns:
        The same shape, 0 outside the mask, and the deviation (Bessel-corrected) before. Values that are all equal
        become 0.
    """
    count, mean, variance = moments(values[mask])
    deviation = math.sqrt(variance)
    scale = 1 / deviation if count > 1 and deviation > 1e-6 * max(1.0, abs(mean)) else 0.0
    return (values - mean) * scale * mask, deviation


def moments(values: Tensor) -> tuple[int, float, float]:
    """Return count, mean and Bessel-corrected variance over all processes, summed in double precision."""
    count, total = (int(all_sum(len(values))), all_sum(values.double().sum()))
    mean = total / max(1, count)
    squares = all_sum(((values.double() - mean) ** 2).sum())
    return count, mean, squares / max(1, count - 1)


def all_sum(value: Tensor | float) -> float:
    """Add up a number over all processes."""
    total = torch.as_tensor(value, dtype=torch.float64).clone()
    if dist.is_initialized():
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = total.to(device)
        dist.all_reduce(total)
    return float(total)


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip: float, dual_clip: float | None = None
) -> Tensor:
    """Return the clipped loss of each token (arXiv:1707.06347, equation 7), negated to be minimised.

    `dual_clip` bounds the loss of bad tokens that became much likelier (arXiv:1912.09729, equation 5).
    """
    ratios = ratio(logps, old_logps)
    losses = torch.maximum(-advantages * ratios, -advantages * ratios.clamp(1 - clip, 1 + clip))
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
    return losses


def ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    """Return pi / pi_old of each token, never infinite."""
    return (logps - old_logps).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """Return half the squared error of each token's value, the worse of the value and the clipped value."""
    losses = (values - returns) ** 2
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        losses = torch.maximum(losses, (near - returns) ** 2)
    return 0.5 * losses


def k3(log_ratios: Tensor) -> Tensor:
    """Estimate KL(p || q) per token, never negative, from log p - log q of tokens sampled from p."""
    return torch.expm1(-log_ratios) + log_ratios


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """Return 1 - var(returns - values) / var(returns) over all processes; None where the returns do not vary."""
    _, mean, variance = moments(returns)
    _, _, left = moments(returns - values)
    return 1 - left / variance if variance > 1e-10 * max(1.0, mean**2) else None


@dataclass
class KLPrice:
    """The coefficient of the KL charge: fixed, or adapted to hold a target (arXiv:1909.08593, section 2.2).

    `beta` moves by at most a fifth of `answers / horizon` at a time, towards a KL of `target` nats per answer.
    """

    initial: float
    target: float | None = None
    horizon: int = 10_000
    beta: float = field(init=False)

    def __post_init__(self) -> None:
        self.beta = self.initial

    def update(self, kl: float, *, answers: int) -> None:
        """Adapt to the KL, nats per answer, that was measured on a rollout."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * answers / self.horizon


def overlong(lengths: Tensor, *, begin: int, end: int, most: float) -> Tensor:
    """Return what answers lose for their length in tokens: 0 up to `begin`, `most` at `end`, a line between."""
    return most * ((lengths - begin) / (end - begin)).clamp(0, 1)
