"""Whole runs of PPO: what they learn, repeat and leave alone; items are numbered as in tests/mutations/ppo.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from llmpipe.training.ppo.trainer import seed_of
from tests.stages.ppo_worlds import OnTokens, equal, made, weights


def test_a_constant_reward_is_learned_by_the_value_and_moves_nothing(tmp_path: Path) -> None:
    """Item 15: V becomes 1; then there is no advantage, and no explained variance to speak of."""
    options = {"rollout": {"samples": 16, "max_new_tokens": 1}, "rollouts": 40, "kl": {"coefficient": 0.0}}
    arguments = {"max_grad_norm": 1.0}  # the norm that is logged is then the policy's alone
    trainer, _ = made(tmp_path, reward=lambda ids: 1.0, value_learning_rate=2e-2, arguments=arguments, **options)
    trainer.prompts = trainer.prompts[:1] * 4
    before = weights(trainer, "policy.")
    trainer.train()
    last = trainer.history[-1]
    assert last["value"] == pytest.approx(1, abs=0.02)
    assert last["advantage_deviation"] < 1e-6 and last["grad_norm"] == 0
    assert "explained_variance" not in last
    assert equal(before, weights(trainer, "policy."))


def test_a_run_repeats_with_its_seed(tmp_path: Path) -> None:
    """Items 28 and 29: to the bit; and the reference is what it was."""
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer, _ = made(tmp_path / name, arguments={"seed": seed})
        before = weights(trainer, "policy.")
        trainer.train()
        assert not equal(before, weights(trainer, "policy."))
        reference = trainer.collector.reference
        assert reference.is_unchanged
        assert all(parameter.grad is None for parameter in reference.model.parameters())
        kept = {f"policy.{name}": tensor for name, tensor in reference.model.state_dict().items()}
        assert equal(before, kept)
        found.append(weights(trainer))
    assert equal(found[0], found[1]) and not equal(found[0], found[2])


def test_every_process_and_rollout_draws_its_own_answers() -> None:
    """Item 28."""
    seeds = {seed_of(3, rollout, process) for rollout in range(1, 200) for process in range(16)}
    assert len(seeds) == 199 * 16 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("scale", [(5.0, -40.0)])
def test_a_normalised_reward_may_have_any_scale(tmp_path: Path, scale: tuple[float, float]) -> None:
    """Item 12: r and a r + b teach the same."""
    found = []
    for factor, shift in ((1.0, 0.0), scale):
        scorer = OnTokens(lambda ids, a=factor, b=shift: a * sum(ids) / 20 + b)  # type: ignore[misc]
        scorer.normalized = True  # type: ignore[misc]
        trainer, _ = made(tmp_path / str(factor), scorers=[scorer])
        trainer.train()
        found.append(weights(trainer))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


@pytest.mark.parametrize("samples", [1, 2])
def test_the_smallest_rollouts(tmp_path: Path, samples: int) -> None:
    """Item 30."""
    trainer, _ = made(tmp_path, rollout={"samples": samples}, minibatches=1)
    trainer.train()
    assert trainer.rollouts == 3
    assert all(math.isfinite(value) for entry in trainer.history for value in entry.values())


def test_an_adaptive_price_moves_between_rollouts(tmp_path: Path) -> None:
    """Item 8: from what was measured, in nats per answer, times all answers of the rollout."""
    trainer, _ = made(tmp_path, kl={"coefficient": 0.1, "target": 0.5, "horizon": 100})
    trainer.train()
    price = 0.1
    for entry in trainer.history:
        assert entry["beta"] == pytest.approx(price)
        price *= 1 + min(max(entry["kl"] / 0.5 - 1, -0.2), 0.2) * 16 / 100
    assert trainer.price.beta == pytest.approx(price) != 0.1


def test_the_scale_of_rewards_is_that_of_the_first_rollout(tmp_path: Path) -> None:
    """Item 12: measured on the reference's answers; a scale that moved along would hide what was gained."""
    scorer = OnTokens(lambda ids: sum(ids) / 20)
    scorer.normalized = True  # type: ignore[misc]
    trainer, _ = made(tmp_path, scorers=[scorer])
    trainer.roll_out()
    rewards = trainer.collector.rewards
    first = (rewards.shift, rewards.scale)
    assert trainer.metrics["reward"] == pytest.approx(0, abs=1e-6)
    assert trainer.metrics["reward_deviation"] == pytest.approx(1)
    trainer.train()
    assert trainer.rollouts == 3 and (rewards.shift, rewards.scale) == first


def test_measuring_changes_nothing_of_a_run(tmp_path: Path) -> None:
    """Items 23 and 28: measured on held-out prompts after every rollout, a run has the weights of one that is not."""
    plain, _ = made(tmp_path / "a", kl={"coefficient": 0.1, "target": 0.01, "horizon": 100})
    plain.train()
    measured, _ = made(
        tmp_path / "b",
        held_out=[[2, 3], [5]] * 20,
        evaluate_every=1,
        arguments={"eval_strategy": "steps"},
        kl={"coefficient": 0.1, "target": 0.01, "horizon": 100},
    )
    before = measured.measure()
    assert measured.measure() is before, "measured twice"
    seconds = dict(measured.collector.seconds)
    measured.state.global_step = 1
    assert measured.measure() | {"step": 0} == before, "other answers"
    assert measured.collector.seconds == seconds, "counted as time of the rollout"
    measured.measures.pop()
    measured.train()
    assert equal(weights(plain), weights(measured))
    assert [entry["step"] for entry in measured.measures] == [0, 4, 8, 12]
    assert measured.price.beta != 0.1
    for entry in measured.measures:
        assert entry["loss"] == pytest.approx(0.1 * entry["kl"] - entry["reward"]), "not the price of the start"
    assert abs(before["kl"]) < 1e-6 < measured.measures[-1]["kl"]
    logged = [entry["eval_loss"] for entry in measured.state.log_history if "eval_loss" in entry]
    assert logged == [entry["loss"] for entry in measured.measures[1:]]
    assert measured.kept(logged[0])["step"] == 4 and measured.kept(None)["step"] == 12
