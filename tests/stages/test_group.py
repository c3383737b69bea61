"""rloo and grpo: what they converge to, and that what TRL gets wrong on the way is right here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmpipe.errors import StageError
from llmpipe.training import group_trainer
from llmpipe.training.reference import plain_logps
from tests.stages.group_worlds import PROMPTS, world
from tests.stages.ppo_worlds import OnTokens, equal, llama

KINDS = ("rloo", "grpo")
ARMS, BETA, GROUP = 64, 0.2, 8


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def bandit(kind: str, folder: Path, *, price: float = BETA, **arguments: Any) -> float:
    """One token, 64 arms: return the distance from the policy that is best at this price of a nat.

    That is ref * exp(r / price), normalised, as in test_ppo_optima.py.
    """
    policy, prompt = llama(ARMS), torch.tensor([[2, 3]])
    reference = policy(prompt).logits[0, -1].detach().log_softmax(-1)
    rewards = torch.arange(ARMS) / ARMS
    arms = {"policy": policy, "reward": lambda ids: ids[0] / ARMS, "prompts": [[2, 3]], "rollouts": 60, "beta": BETA}
    arms |= {"minibatches": 2, "epochs": 2} if kind == "rloo" else {}
    rollout = {"samples": 128, "samples_per_prompt": GROUP, "max_new_tokens": 1}
    world(kind, folder, **arms, rollout=rollout, arguments=arguments).train()
    with torch.no_grad():
        found = policy(prompt).logits[0, -1].softmax(-1)
    return 0.5 * (found - (reference + rewards / price).softmax(-1)).abs().sum().item()


def test_rloo_comes_to_the_optimum_of_ppo(tmp_path: Path) -> None:
    assert bandit("rloo", tmp_path) < 0.02


def test_grpo_comes_near_an_optimum_of_a_higher_price(tmp_path: Path) -> None:
    """An answer is part of the mean that it is compared with, which takes an eighth off its advantage.

    Four times as many rollouts come within .016. Without `use_bias_correction_kl` it ends up elsewhere.
    """
    price = BETA * GROUP / (GROUP - 1)
    assert bandit("grpo", tmp_path / "ours", price=price, scale_rewards="none") < 0.05
    assert bandit("grpo", tmp_path / "trl", price=price, scale_rewards="none", use_bias_correction_kl=False) > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["gpt2", "opt", "llama"])
def test_padding_on_the_left_changes_no_log_probability(kind: str, arch: str, tmp_path: Path, make_model: Any) -> None:
    policy = make_model(arch)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.mul_(20 if "wpe" in name or "position" in name else 1)  # positions that matter
    trainer = world(kind, tmp_path, policy=policy)
    answers = [([2, 3], [5, 1]), ([4, 2, 3, 3], [2, 6]), ([5], [3, 1])]
    rows = torch.tensor([[0] * (4 - len(prompt)) + prompt + answer for prompt, answer in answers])
    mask = torch.tensor([[0] * (4 - len(prompt)) + [1] * (len(prompt) + 2) for prompt, _ in answers])
    for model in (trainer.model, trainer.ref_model):
        logps = trainer._get_per_token_logps_and_entropies(model, rows, mask, 2)[0].sum(1)
        assert torch.allclose(logps, plain_logps(policy, answers), atol=1e-4)


def test_a_model_that_sees_padding_is_refused(tmp_path: Path, make_model: Any, monkeypatch: Any) -> None:
    """Without position ids, as TRL 1.16 calls it, GPT-2 is such a one: when this fails, the hook can go."""
    policy = make_model("gpt2")
    with torch.no_grad():
        policy.transformer.wpe.weight.mul_(20)
    monkeypatch.setattr(group_trainer, "count_positions", lambda _: None)
    with pytest.raises(StageError) as caught:
        world("grpo", tmp_path, policy=policy)
    assert str(caught.value) == "a gpt2 gives other logits behind a padded prompt, and TRL pads prompts on the left"
    assert caught.value.hint == "use rlhf-ppo, which pads on the right"


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_read_the_sampled_tokens_with_their_end(kind: str, tmp_path: Path) -> None:
    seen: list[list[int]] = []
    trainer = world(
        kind, tmp_path, reward=lambda ids: float(len(seen.append(ids) or ids)), missing_end_penalty=10.0, rollouts=1
    )
    trainer.train()
    assert len(seen) == 16
    assert any(ids[-1] == 1 for ids in seen)
    assert all(ids.count(1) == (ids[-1] == 1) and 1 <= len(ids) <= 6 for ids in seen)
    worth = [len(ids) - 10 * (ids[-1] != 1) for ids in seen]
    logged = trainer.history[0]
    assert logged["reward"] == pytest.approx(sum(worth) / 16)
    assert logged["reward_known"] == logged["length"] == pytest.approx(sum(map(len, seen)) / 16)
    assert logged["ended_share"] == pytest.approx(sum(ids[-1] == 1 for ids in seen) / 16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_policy_as_it_came(kind: str, tmp_path: Path) -> None:
    trainer = world(kind, tmp_path)
    before = weights(trainer)
    trainer.train()
    reference = trainer.collector.reference
    assert trainer.ref_model is reference.model and reference.is_unchanged
    assert equal(before, reference.model.state_dict()) and not equal(before, weights(trainer))
    assert abs(trainer.history[0]["kl_per_token"]) < 1e-6 < abs(trainer.history[-1]["kl_per_token"])


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_batch_give_the_step_of_the_whole(kind: str, tmp_path: Path) -> None:
    found = []
    for micro in (16, 4):
        arguments = {"optim": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "per_device_train_batch_size": micro}
        arguments |= {"gradient_accumulation_steps": 16 // micro, "steps_per_generation": 16 // micro}
        trainer = world(kind, tmp_path / str(micro), arguments=arguments, rollouts=1)
        trainer.train()
        found.append(weights(trainer))
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) < 1e-6
    assert not equal(found[0], dict(llama(7, context=16).state_dict()))


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_changes_nothing_of_a_run(kind: str, tmp_path: Path) -> None:
    plain = world(kind, tmp_path / "a")
    plain.train()
    options = {"held_out": [[2, 3], [5]] * 4, "evaluate_every": 1, "arguments": {"eval_strategy": "steps"}}
    measured = world(kind, tmp_path / "b", **options)
    before = measured.measure()
    assert abs(before["kl"]) < 1e-6
    measured.train()
    assert equal(weights(plain), weights(measured))
    assert [entry["step"] for entry in measured.measures] == [0, 1, 2, 3]
    assert measured.measures[-1]["loss"] == pytest.approx(
        0.05 * measured.measures[-1]["kl"] - measured.measures[-1]["reward"]
    )
    lines = [entry for entry in measured.state.log_history if "eval_loss" in entry]
    assert len(lines) == 3 and not any("length" in entry for entry in lines)  # which are those of a rollout


@pytest.mark.parametrize("kind", KINDS)
def test_habits_of_the_model_are_put_aside(kind: str, tmp_path: Path) -> None:
    """A repetition penalty that a model came with would change what is sampled, and not its log-probabilities."""
    found = []
    for penalty in (1.0, 8.0):
        policy = llama(7, context=16)
        policy.generation_config.repetition_penalty = penalty
        policy.generation_config.no_repeat_ngram_size = 2 if penalty > 1 else 0
        trainer = world(kind, tmp_path / str(penalty), policy=policy, rollouts=1)
        trainer.train()
        found.append(weights(trainer))
    assert equal(*found)


def test_answers_that_cannot_be_scored_are_left_out(tmp_path: Path) -> None:
    trainer = world("grpo", tmp_path, reward=lambda ids: float("nan") if ids[0] % 2 else 1.0, rollouts=1)
    trainer.train()
    assert trainer.history[0]["reward"] == trainer.history[0]["reward_known"] == 1.0
    trainer = world("grpo", tmp_path / "none", reward=lambda _: float("nan"), rollouts=1)
    with pytest.raises(StageError) as caught:
        trainer.train()
    assert str(caught.value) == "no answer of a rollout could be scored"
    assert caught.value.hint == "a reward is a number for each answer"


def test_it_is_said_when_there_is_nothing_to_compare(tmp_path: Path) -> None:
    trainer = world("grpo", tmp_path, scorer=OnTokens(lambda _: 1.0))
    trainer.train()
    said = [event["text"] for event in trainer.ctx.events if event["event"] == "say"]
    assert said == [
        "to 100% of the prompts all answers have the same reward, so that there is nothing to learn from them: raise "
        "rollout.samples_per_prompt, or give part of the reward for less"
    ]


def test_every_prompt_is_asked_in_its_own_tokens(tmp_path: Path) -> None:
    trainer = world("grpo", tmp_path, rollouts=1)
    asked: list[list[int]] = []
    original = trainer.collector.score
    trainer.collector.score = lambda some, answers: asked.extend(one.ids for one in some) or original(some, answers)
    trainer.train()
    assert sorted(asked) == sorted(PROMPTS * 4)
