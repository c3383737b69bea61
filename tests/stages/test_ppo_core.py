"""The formulas of PPO against numbers computed by hand; items are numbered as in tests/mutations/ppo.py."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, tensor

from llmpipe.training.ppo import core

AT_ALL = tensor([[True, True, True]])
CUT = tensor([[True, True, False]])


def close(found: Tensor, wanted: object, tolerance: float = 1e-6) -> bool:
    return torch.allclose(found, torch.as_tensor(wanted, dtype=found.dtype), atol=tolerance, rtol=0)


def test_the_score_is_paid_at_the_last_token() -> None:
    """Item 6: the charge is on every token, the score on the end token, nothing on padding."""
    logps, reference = tensor([[-1.0, -2.0, -9.0]]), tensor([[-1.5, -2.0, -1.0]])
    found = core.token_rewards(tensor([5.0]), logps - reference, CUT, beta=0.1)
    assert close(found, [[-0.05, 5.0, 0.0]])


def test_an_answer_without_tokens_gets_nothing() -> None:
    """Item 30."""
    mask = tensor([[False, False], [True, False]])
    found = core.token_rewards(tensor([5.0, 7.0]), torch.ones(2, 2), mask, beta=0.5)
    assert close(found, [[0.0, 0.0], [6.5, 0.0]])


@pytest.mark.parametrize(
    ("mask", "advantages", "returns"),
    [
        (AT_ALL, [[5.14175, 4.465, 2.7]], [[5.64175, 4.865, 3.0]]),
        (CUT, [[2.42, 1.6, 0.0]], [[2.92, 2.0, 0.0]]),
    ],
)
def test_advantages_by_hand(mask: Tensor, advantages: object, returns: object) -> None:
    """Item 10: rewards 1, 2, 3 and values .5, .4, .3, with lambda .95; what is cut off ends with value 0 (item 5)."""
    rewards, values = tensor([[1.0, 2.0, 3.0]]) * mask, tensor([[0.5, 0.4, 0.3]])
    found = core.advantages_and_returns(rewards, values, mask, discount=1.0, gae_lambda=0.95)
    assert close(found[0], advantages) and close(found[1], returns)


def test_with_lambda_1_returns_are_the_rewards_to_come() -> None:
    """Item 10."""
    rewards, values = tensor([[1.0, 2.0, 3.0]]), tensor([[0.5, 0.4, 0.3]])
    _, returns = core.advantages_and_returns(rewards, values, AT_ALL, discount=1.0, gae_lambda=1.0)
    assert close(returns, [[6.0, 5.0, 3.0]])


def test_advantages_equal_the_sum_they_stand_for() -> None:
    """Item 10: the recursion against the sum of discounted errors in double precision, on ragged random numbers."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(16, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(0, 10, (16,), generator=generator)
    mask = torch.arange(9) < lengths[:, None]
    found, _ = core.advantages_and_returns(rewards * mask, values, mask, discount=0.9, gae_lambda=0.7)
    for row, length in enumerate(lengths.tolist()):
        later = [*values[row, :length].tolist(), 0.0]
        errors = [float(rewards[row, t]) + 0.9 * later[t + 1] - later[t] for t in range(length)]
        wanted = [sum(0.63 ** (k - t) * errors[k] for k in range(t, length)) for t in range(length)]
        assert close(found[row, :length], wanted, 1e-12)
        assert not found[row, length:].any()


def test_padding_changes_no_advantage() -> None:
    """Item 10."""
    rewards, values = tensor([[1.0, 2.0, 0.0, 0.0]]), tensor([[0.5, 0.4, 77.0, -9.0]])
    mask = tensor([[True, True, False, False]])
    wide = core.advantages_and_returns(rewards, values, mask, discount=1.0, gae_lambda=0.95)
    narrow = core.advantages_and_returns(rewards[:, :2], values[:, :2], mask[:, :2], discount=1.0, gae_lambda=0.95)
    for one, two in zip(wide, narrow, strict=True):
        assert torch.equal(one[:, :2], two) and not one[:, 2:].any()


@pytest.mark.parametrize(
    ("values", "mask", "wanted", "deviation"),
    [
        ([[1.0, 2.0, 3.0, 99.0]], [[True, True, True, False]], [[-1.0, 0.0, 1.0, 0.0]], 1.0),
        ([[4.0, 8.0]], [[True, True]], [[-(0.5**0.5), 0.5**0.5]], 8**0.5),
        ([[0.1, 0.1, 0.1]], [[True, True, True]], [[0.0, 0.0, 0.0]], 0.0),
        ([[7.0, 99.0]], [[True, False]], [[0.0, 0.0]], 0.0),
        ([[7.0, 99.0]], [[False, False]], [[0.0, 0.0]], 0.0),
    ],
)
def test_whitening_by_hand(values: object, mask: object, wanted: object, deviation: float) -> None:
    """Item 11: Bessel-corrected, over the mask; numbers that are all equal, or one alone, become 0."""
    found, before = core.whitened(tensor(values), tensor(mask))
    assert close(found, wanted)
    assert before == pytest.approx(deviation, abs=1e-7)


def _whiten_as(rank: int, store: str, parts: list[Tensor], results: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(parts))
    found, _ = core.whitened(parts[rank], torch.ones_like(parts[rank], dtype=torch.bool))
    variance = core.explained_variance(parts[rank] / 2, parts[rank])
    results.put((rank, found.tolist(), variance))  # type: ignore[attr-defined]


def test_two_processes_whiten_as_one(tmp_path: Path) -> None:
    """Item 11: mean and deviation are those of all processes' tokens."""
    values = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    parts = [values[:, :3], values[:, 3:]]
    processes = [fork.Process(target=_whiten_as, args=(rank, tmp_path / "s", parts, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    alone, _ = core.whitened(values, torch.ones_like(values, dtype=torch.bool))
    assert close(tensor([found[0][1][0] + found[1][1][0]], dtype=torch.float64), alone, 1e-12)
    wanted = core.explained_variance(values / 2, values)
    assert [variance for *_, variance in found] == [pytest.approx(wanted)] * 2


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (1.0, 1.5, -1.2, 0.0),
        (1.0, 0.5, -0.5, -0.5),
        (-1.0, 1.5, 1.5, 1.5),
        (-1.0, 0.5, 0.8, 0.0),
        (1.0, 1.1, -1.1, -1.1),
    ],
)
def test_the_clipped_loss_by_hand(advantage: float, ratio: float, loss: float, slope: float) -> None:
    """Item 13: with clip .2; no gradient where the ratio went far enough in the direction that pays."""
    old = tensor([-2.0])
    logps = (old + math.log(ratio)).requires_grad_()
    found = core.policy_loss(logps, old, tensor([advantage]), clip=0.2)
    found.sum().backward()
    assert close(found, [loss])
    assert logps.grad is not None and close(logps.grad, [slope])


@pytest.mark.parametrize(("advantage", "ratio", "loss"), [(-1.0, 5.0, 3.0), (-1.0, 2.0, 2.0), (1.0, 5.0, -1.2)])
def test_dual_clip_bounds_what_a_bad_token_costs(advantage: float, ratio: float, loss: float) -> None:
    """Item 13."""
    logps = tensor([math.log(ratio)])
    assert close(core.policy_loss(logps, torch.zeros(1), tensor([advantage]), clip=0.2, dual_clip=3.0), [loss])


def test_a_ratio_is_never_infinite() -> None:
    """Item 13."""
    found = core.policy_loss(tensor([500.0, -500.0]), torch.zeros(2), tensor([-1.0, -1.0]), clip=0.2)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("value", "clip", "loss"),
    [(1.0, None, 0.5), (1.0, 0.2, 0.845), (0.6, 0.2, 0.98), (1.0, 0.9, 0.5)],
)
def test_the_value_loss_by_hand(value: float, clip: float | None, loss: float) -> None:
    """Item 15: the rollout's value is .5 and the return 2; a value that moved too far is held where the clip ends."""
    assert close(core.value_loss(tensor([value]), tensor([0.5]), tensor([2.0]), clip=clip), [loss])


def test_explained_variance() -> None:
    """Item 15: nothing is to be explained where returns do not vary, and that is not infinity."""
    returns = tensor([0.0, 1.0, 2.0, 3.0])
    assert core.explained_variance(returns, returns) == 1.0
    assert core.explained_variance(torch.zeros(4), returns) == 0.0
    assert core.explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert core.explained_variance(returns, torch.full((4,), 0.7)) is None


def test_k3_is_a_kl() -> None:
    """Item 7: what is only logged is never negative, 0 for equals, and right in the mean."""
    p, q = tensor([0.7, 0.2, 0.1], dtype=torch.float64), tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    found = core.k3((p / q).log())
    assert (found >= 0).all()
    assert float((p * found).sum()) == pytest.approx(float((p * (p / q).log()).sum()))
    assert not core.k3(torch.zeros(3)).any()


def test_the_kl_price_by_hand() -> None:
    """Item 8: three updates of 64 answers, clipped above, within, clipped below; nats per answer, not per token."""
    price = core.KLPrice(0.15, target=6.0, horizon=10_000)
    prices = []
    for kl in (12.0, 6.3, 0.0):
        price.update(kl, answers=64)
        prices.append(price.beta)
    assert prices == pytest.approx([0.150192, 0.15024006144, 0.1500477541614], abs=1e-12)
    fixed = core.KLPrice(0.15)
    fixed.update(12.0, answers=64)
    assert fixed.beta == 0.15


def test_the_length_penalty_is_a_line() -> None:
    """Item 25."""
    found = core.overlong(tensor([1.0, 8.0, 12.0, 16.0, 20.0]), begin=8, end=16, most=2.0)
    assert close(found, [0.0, 0.0, 1.0, 2.0, 2.0])
