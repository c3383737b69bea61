"""Sampling and scoring: where answers end, what they are worth, what is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llmpipe.training.ppo import core
from llmpipe.training.ppo.experience import Experience, Penalties, Scored, correlation
from llmpipe.training.ppo.rollout import Answer, Generate, cut
from llmpipe.training.ppo.scoring import FunctionScorer, Rewards
from llmpipe.training.ppo.trainer import PPOTrainer
from tests.stages.ppo_worlds import PROMPTS, Letters, llama, world


def sharp(vocab: int = 7) -> PreTrainedModel:
    """Make a policy that prefers some tokens by far."""
    policy = llama(vocab)
    with torch.no_grad():
        policy.lm_head.weight.mul_(12)
    return policy


def small(folder: Path, *, reward: Callable[[list[int]], float] | None = None, **settings: Any) -> PPOTrainer:
    rollout = {"samples": 16, "max_new_tokens": 5, **settings.pop("rollout", {})}
    options = {"rollouts": 2, "value_warmup_rollouts": 0, **settings}
    return world(folder, sharp(), reward or (lambda ids: sum(ids) / 20), prompts=PROMPTS, rollout=rollout, **options)


def gather(trainer: PPOTrainer) -> tuple[Experience, dict[str, Any], Scored]:
    """Make one rollout's experience without learning from it."""
    asked = trainer.prompts * 4
    scored = trainer.collector.answer(trainer.model.policy, asked, seed=0)
    trainer.collector.rewards.measure(scored.components)
    experience, metrics, _ = trainer.collector.experience(asked, scored, beta=trainer.price.beta)
    return experience, metrics, scored


# --- where answers end


def test_an_answer_ends_at_its_first_end_token() -> None:
    """Items 3 and 4: by the end tokens alone; the pad token, 0, may be one of them or stand in the middle."""
    assert cut([5, 0, 1, 0, 0], end_ids=(1, 4)) == Answer([5, 0, 1], True)
    assert cut([5, 4, 1], end_ids=(1, 4)) == Answer([5, 4], True)
    assert cut([5, 0, 0], end_ids=(0,)) == Answer([5, 0], True)
    assert cut([5, 6, 0], end_ids=(1,)) == Answer([5, 6, 0], False)


def test_sampling_stops_at_every_end_token() -> None:
    """Items 4 and 5."""
    answers = Generate((1, 4), 0, 6, 1.0).sample(llama(7), PROMPTS * 16, seed=0)
    ends = {answer.ids[-1] for answer in answers if answer.finished}
    assert ends == {1, 4}
    assert not any({1, 4} & set(answer.ids[:-1]) for answer in answers)
    assert {len(answer.ids) for answer in answers if not answer.finished} == {6}
    assert Generate(tuple(range(7)), 0, 6, 1.0)._generate(llama(7), PROMPTS).shape == (4, 1), "went on after the end"


def test_sampling_is_at_the_temperature() -> None:
    """Item 1."""
    policy = sharp()
    answers = Generate((1,), 0, 1, 0.7).sample(policy, [[2, 3]] * 8192, seed=0)
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in answers]), minlength=7) / len(answers)
    with torch.no_grad():
        logits = policy(torch.tensor([[2, 3]])).logits[0, -1]
    distances = [0.5 * float((counts - (logits / t).softmax(-1)).abs().sum()) for t in (0.7, 1.0)]
    assert distances[0] < 0.02 < 0.05 < distances[1]


def test_a_saved_generation_config_changes_nothing() -> None:
    """Item 1: penalties and filters that a model came with would bias every update."""
    policy, plain = sharp(), sharp()
    policy.generation_config.update(repetition_penalty=5.0, top_k=1, min_new_tokens=6, suppress_tokens=[3])
    saved = policy.generation_config
    sampler = Generate((1,), 0, 6, 1.0)
    assert sampler.sample(policy, PROMPTS, seed=1) == sampler.sample(plain, PROMPTS, seed=1)
    assert policy.generation_config is saved


def test_sampling_leaves_no_trace() -> None:
    """Item 28: the same seed gives the same answers, another one others; mode and generator are as they were."""
    policy = sharp().train()
    sampler = Generate((1,), 0, 6, 1.0)
    before = torch.get_rng_state()
    first = sampler.sample(policy, PROMPTS, seed=1)
    assert policy.training and torch.equal(before, torch.get_rng_state())
    assert first == sampler.sample(policy, PROMPTS, seed=1) != sampler.sample(policy, PROMPTS, seed=2)


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_the_pad_token_changes_nothing(tmp_path: Path, pad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Item 3: the end token is 1, so that one of these pads with it, and one with a token that answers contain."""
    wanted, metrics, _ = gather(small(tmp_path / "a"))
    monkeypatch.setattr(Letters, "pad_token_id", pad)
    found, others, _ = gather(small(tmp_path / "b"))
    assert metrics["ended_share"] == others["ended_share"] > 0
    for name, tensor in found.tensors().items():
        if name != "ids":
            assert torch.allclose(tensor, wanted.tensors()[name], atol=1e-5), name


# --- what they are worth


@pytest.mark.parametrize("gae_lambda", [1.0, 0.95])
def test_returns_are_what_is_paid_from_a_token_on(tmp_path: Path, gae_lambda: float) -> None:
    """Items 5, 6 and 10: values begin at 0, so that only what is paid, discounted by lambda, is in the returns."""
    trainer = small(tmp_path, gae_lambda=gae_lambda, kl={"coefficient": 0.0}, missing_end_penalty=2.0)
    experience, _, scored = gather(trainer)
    assert {answer.finished for answer in scored.answers} == {True, False}
    for row, answer in enumerate(scored.answers):
        worth = sum(answer.ids) / 20 - (0.0 if answer.finished else 2.0)
        wanted = [worth * gae_lambda ** (len(answer.ids) - 1 - place) for place in range(len(answer.ids))]
        assert experience.returns[row, : len(answer.ids)].tolist() == pytest.approx(wanted, abs=1e-5)
        assert not experience.returns[row, len(answer.ids) :].any()


def test_the_kl_charge_is_beta_per_nat(tmp_path: Path) -> None:
    """Items 6 and 7: with a policy that moved, an answer's first return is its score minus beta times its KL."""
    trainer = small(tmp_path, gae_lambda=1.0, kl={"coefficient": 0.5})
    with torch.no_grad():
        trainer.model.policy.lm_head.weight.mul_(1.2)
    experience, metrics, scored = gather(trainer)
    charges = []
    for row, answer in enumerate(scored.answers):
        _, _, log_ratios = trainer.collector.read(experience.sequences)
        charges.append(float(log_ratios[row, : len(answer.ids)].sum()))
        wanted = sum(answer.ids) / 20 - 0.5 * charges[-1]
        assert float(experience.returns[row, 0]) == pytest.approx(wanted, abs=1e-5)
    assert metrics["kl"] == pytest.approx(sum(charges) / 16, abs=1e-5)
    lengths = [len(answer.ids) for answer in scored.answers]
    assert metrics["kl_per_token"] == pytest.approx(sum(charges) / sum(lengths), abs=1e-5)


def test_advantages_of_a_rollout_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    """Item 11: over the tokens of the whole rollout; returns are taken before."""
    experience, metrics, _ = gather(small(tmp_path))
    mask = experience.sequences.mask()
    chosen = experience.advantages[mask]
    assert abs(chosen.mean()) < 1e-6 and float(chosen.std()) == pytest.approx(1, abs=1e-5)
    assert not experience.advantages[~mask].any()
    assert metrics["advantage_deviation"] == pytest.approx(float(experience.returns[mask].std()), rel=1e-4)


def test_what_an_answer_loses() -> None:
    """Items 5 and 25."""
    penalties = Penalties(missing_end=3.0, long_from=2, long_until=6, long_most=1.0)
    answers = [Answer([1], True), Answer([1, 2, 3, 4], True), Answer([1] * 6, False)]
    assert penalties.of(answers).tolist() == [0.0, 0.5, 4.0]
    assert replace(penalties, long_from=None).of(answers).tolist() == [0.0, 0.0, 3.0]


def test_a_length_penalty_reaches_the_returns(tmp_path: Path) -> None:
    """Item 25."""
    trainer = small(tmp_path, gae_lambda=1.0, kl={"coefficient": 0.0}, length_penalty={"begin": 1, "most": 8.0})
    experience, _, scored = gather(trainer)
    wanted = [sum(answer.ids) / 20 - 8.0 * (len(answer.ids) - 1) / 4 for answer in scored.answers]
    assert experience.returns[:, 0].tolist() == pytest.approx(wanted, abs=1e-5)


def rewards_of(*, clip: float | None = None, normalized: bool = True) -> Rewards:
    return Rewards([FunctionScorer(lambda **_: [], ("f",), 2.0, normalized=normalized)], clip)


def test_rewards_come_to_scale_once() -> None:
    """Item 12: mean 0 and deviation 1 as first measured, whatever scale a scorer has; then weight, then the bound."""
    scores = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    for factor, shift in ((1.0, 0.0), (40.0, -7.0)):
        rewards = rewards_of()
        rewards.measure(scores * factor + shift)
        assert rewards.total(scores * factor + shift).tolist() == pytest.approx([-2.0, 0.0, 2.0])
        assert rewards.total((scores + 1) * factor + shift).tolist() == pytest.approx([0.0, 2.0, 4.0])
    bounded = rewards_of(clip=1.5)
    bounded.measure(scores)
    assert bounded.total(scores).tolist() == [-1.5, 0.0, 1.5]
    plain = rewards_of(normalized=False)
    plain.measure(scores)
    assert plain.total(scores).tolist() == [2.0, 4.0, 6.0]


def test_rewards_that_do_not_vary_are_not_blown_up() -> None:
    """Item 30."""
    rewards = rewards_of()
    rewards.measure(torch.full((3, 1), 5.0, dtype=torch.float64))
    assert rewards.total(torch.tensor([[5.0], [6.0]], dtype=torch.float64)).tolist() == [0.0, 2.0]


def test_what_is_not_finite_is_no_reward(tmp_path: Path) -> None:
    """Item 30: neither in the scale nor, through the bound, as a very good answer."""
    rewards = rewards_of(clip=10.0)
    scores = torch.tensor([[1.0], [math.nan], [3.0], [math.inf]], dtype=torch.float64)
    rewards.measure(scores)
    assert (rewards.shift, rewards.scale) == ([2.0], [pytest.approx(2**0.5)])
    assert rewards.total(scores).isfinite().tolist() == [True, False, True, False]


# --- what is left out, and what is said of the rest


def test_answers_without_a_score_are_left_out(tmp_path: Path) -> None:
    """Item 30: no token of theirs is learned from, and they are in no mean."""
    trainer = small(tmp_path, reward=lambda ids: math.nan if 3 in ids else 1.0)
    experience, metrics, scored = gather(trainer)
    bad = [3 in answer.ids for answer in scored.answers]
    assert 0 < sum(bad) < 16 and metrics["skipped"] == sum(bad) and metrics["reward"] == 1.0
    lengths = [0 if out else len(answer.ids) for out, answer in zip(bad, scored.answers, strict=True)]
    assert experience.sequences.lengths.tolist() == lengths
    assert metrics["length"] == pytest.approx(sum(lengths) / (16 - sum(bad)))
    assert all(tensor.isfinite().all() for tensor in experience.tensors().values())


class Says:
    """A sampler that always says the same."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = answers

    def sample(self, policy: PreTrainedModel, prompts: Sequence[list[int]], *, seed: int) -> list[Answer]:
        return [self.answers[place % len(self.answers)] for place in range(len(prompts))]


def test_metrics_of_a_rollout_by_hand(tmp_path: Path) -> None:
    """Items 23 and 24."""
    trainer = small(tmp_path, reward=lambda ids: -float(len(ids)))
    trainer.collector.sampler = Says(Answer([2, 1], True), Answer([2, 3, 4, 5, 6], False))
    _, metrics, _ = gather(trainer)
    assert (metrics["length"], metrics["ended_share"], metrics["unique_share"]) == (3.5, 0.5, 2 / 16)
    assert (metrics["reward"], metrics["reward_known"], metrics["skipped"]) == (-3.5, -3.5, 0)
    assert metrics["reward_deviation"] == pytest.approx((16 / 15 * 2.25) ** 0.5)
    assert metrics["reward_length_correlation"] == pytest.approx(-1)


@pytest.mark.parametrize(
    "answers",
    [(Answer([], False),), (Answer([], False), Answer([2, 1], True)), (Answer([1], True),), (Answer([2] * 5, False),)],
    ids=["all empty", "some empty", "one token", "all cut off"],
)
def test_odd_answers_make_no_nan(tmp_path: Path, answers: tuple[Answer, ...]) -> None:
    """Item 30: a run with nothing but these comes to its end, and every number of it is finite."""
    trainer = small(tmp_path)
    trainer.collector.sampler = Says(*answers)
    trainer.train()
    assert trainer.rollouts == 2 and len(trainer.history) == 2
    assert all(math.isfinite(value) for entry in trainer.history for value in entry.values())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_a_process_without_held_out_prompts_measures_nothing(tmp_path: Path) -> None:
    """With fewer prompts than processes, one has none; it still has to take part in the sums."""
    trainer = small(tmp_path)
    trainer.collector.rewards.scorers = [FunctionScorer(lambda prompts, answers: [max(answers)], ("f",), 1.0)]
    collector = trainer.collector
    scored = collector.answer(trainer.model.policy, [], seed=0)
    collector.rewards.measure(scored.components)
    sequences = collector.sequences([], scored, collector.rewards_of(scored).isfinite())
    found = collector.metrics(scored, collector.read(sequences)[2])
    assert (found["reward"], found["kl"], found["skipped"]) == (0.0, 0.0, 0)


def test_correlation() -> None:
    """Item 24."""
    ones = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert correlation(ones, 3 * ones - 2) == pytest.approx(1)
    assert correlation(ones, -ones) == pytest.approx(-1)
    assert correlation(ones, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx(0)
    assert correlation(ones, torch.ones(4)) is None
    assert core.explained_variance(ones, torch.ones(4)) is None
