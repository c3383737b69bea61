"""The trainer: steps and batches, gradients, the optimizer, what is logged; items as in tests/mutations/ppo.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from llmpipe.errors import StageError
from llmpipe.stages import rlhf_ppo
from llmpipe.training.ppo.experience import plan
from llmpipe.training.ppo.prompts import PromptStream
from tests.stages.ppo_worlds import OnTokens, equal, llama, made, weights

# --- steps and batches


@pytest.mark.parametrize(("epochs", "minibatches", "micro"), [(3, 2, None), (2, 4, 2), (1, 1, 4)])
def test_a_rollout_has_as_many_steps_as_said(tmp_path: Path, epochs: int, minibatches: int, micro: int | None) -> None:
    """Item 20: epochs x minibatches, however small the passes are."""
    trainer, watch = made(tmp_path, epochs=epochs, minibatches=minibatches, micro_batch=micro)
    trainer.train()
    steps = epochs * minibatches
    assert watch.steps == [1] * steps + [2] * steps + [3] * steps
    assert trainer.state.global_step == 3 * steps
    assert [entry["steps"] for entry in trainer.history] == [steps] * 3


def test_passes_change_neither_gradients_nor_metrics(tmp_path: Path) -> None:
    """Items 20 and 23: micro-batches of 1, 2, 4 and 8 of a minibatch with ragged answers, to 1e-6."""
    found = []
    for micro in (8, 4, 2, 1):
        trainer, watch = made(tmp_path / str(micro), micro_batch=micro, rollouts=1, kl={"coefficient": 0.2})
        trainer.train()
        found.append((watch.gradients, trainer.history[0]))
        assert trainer.experience is not None and len(set(trainer.experience.sequences.lengths.tolist())) > 3
    (wanted, metrics), *others = found
    assert len(wanted) == 4 and len(wanted[0]) == len(list(trainer.model.named_parameters()))
    for gradients, other in others:
        for one, two in zip(wanted, gradients, strict=True):
            assert one.keys() == two.keys()
            assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
        for name in metrics:
            if not name.startswith("seconds") and "norm" not in name:
                assert other[name] == pytest.approx(metrics[name], abs=1e-5), name


def test_the_loss_is_one_mean_over_the_tokens(tmp_path: Path) -> None:
    """Items 20 and 23: what is logged after one step equals the loss computed from the rollout at one go."""
    trainer, watch = made(tmp_path, micro_batch=2, rollouts=1, epochs=1, minibatches=1, value_coefficient=0.3)
    trainer.roll_out()
    experience = trainer.experience
    assert experience is not None
    batch = experience.batch(list(range(16)))
    logps, values = trainer.model(batch["input_ids"], batch["prompt_lengths"], batch["lengths"])
    policy = -(batch["advantages"] * (logps - batch["logps"]).exp()).mean()
    value = 0.5 * ((values - batch["returns"]) ** 2).mean()
    (policy + 0.3 * value).backward()
    wanted = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    trainer.train()
    assert max(float((wanted[name] - watch.gradients[0][name]).abs().max()) for name in wanted) < 1e-6
    assert trainer.history[0]["policy_loss"] == pytest.approx(policy.item(), abs=1e-5)
    assert trainer.history[0]["value_loss"] == pytest.approx(value.item(), abs=1e-5)


def test_padding_and_passes_of_a_rollout_change_nothing(tmp_path: Path) -> None:
    """Item 23: experience is read in passes of any size."""
    found = []
    for tokens in (8, 10_000):
        trainer, _ = made(tmp_path / str(tokens))
        trainer.collector.tokens_per_pass = tokens
        trainer.roll_out()
        assert trainer.experience is not None
        found.append((trainer.experience.tensors(), trainer.metrics))
    for name, tensor in found[0][0].items():
        assert torch.allclose(tensor, found[1][0][name], atol=1e-5), name
    for name, value in found[0][1].items():
        assert found[1][1][name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("samples_per_prompt", [1, 4])
def test_prompts_of_a_rollout(tmp_path: Path, samples_per_prompt: int) -> None:
    """Items 20 and 21: each prompt as often as said, and none twice before all had their turn."""
    rollout = {"samples": 16, "samples_per_prompt": samples_per_prompt, "max_new_tokens": 2}
    trainer, _ = made(tmp_path, rollout=rollout)
    trainer.roll_out()
    assert trainer.experience is not None
    lengths = trainer.experience.sequences.prompt_lengths.tolist()
    assert sorted(lengths) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    if samples_per_prompt > 1:
        assert all(len(set(lengths[first : first + 4])) == 1 for first in range(0, 16, 4))


def test_a_plan_takes_each_answer_once_an_epoch_in_a_new_order() -> None:
    """Items 20 and 21: epochs x minibatches steps; passes of similar lengths, which change no mean."""
    lengths = [(7 * row) % 11 + 1 for row in range(16)]
    planned = plan(lengths, epochs=3, minibatches=4, passes=2, seed=0)
    assert sum(micro.ends_minibatch for micro in planned) == 3 * 4 and len(planned) == 3 * 4 * 2
    assert [micro.ends_minibatch for micro in planned] == [False, True] * 12
    epochs = [[row for micro in planned[first : first + 8] for row in micro.rows] for first in (0, 8, 16)]
    assert all(sorted(rows) == list(range(16)) for rows in epochs)
    minibatches = [frozenset(planned[place].rows + planned[place + 1].rows) for place in range(0, 24, 2)]
    assert len(set(minibatches)) > 4, "the same minibatches in every epoch"
    for place in range(0, 24, 2):
        both = [lengths[row] for micro in planned[place : place + 2] for row in micro.rows]
        assert both == sorted(both)
        assert planned[place].tokens == planned[place + 1].tokens == sum(both)
    assert planned == plan(lengths, epochs=3, minibatches=4, passes=2, seed=0)
    assert planned != plan(lengths, epochs=3, minibatches=4, passes=2, seed=1)


def test_prompts_come_once_each_before_any_repeats() -> None:
    """Item 21: over the borders of rollouts, and from a checkpoint."""
    stream = PromptStream(7, seed=3)
    taken = [stream.take(4) for _ in range(7)]
    flat = [index for part in taken for index in part]
    rounds = [flat[first : first + 7] for first in range(0, 28, 7)]
    assert all(sorted(one) == list(range(7)) for one in rounds) and len({tuple(one) for one in rounds}) == 4
    again = PromptStream(7, seed=3)
    again.take(8)
    again = PromptStream(**again.state())
    assert again.take(4) == taken[2]


# --- before the first step


def test_the_first_minibatch_has_ratio_1_and_kl_0(tmp_path: Path) -> None:
    """Items 1 and 14: at temperature .7, with prompts and answers of unequal lengths."""
    rollout = {"temperature": 0.7}
    trainer, _ = made(tmp_path, rollout=rollout, rollouts=1, epochs=1, minibatches=1, micro_batch=2)
    trainer.train()
    entry = trainer.history[0]
    assert abs(entry["kl"]) < 1e-5 and entry["ratio_most"] < 1e-5
    assert entry["clip_fraction"] == 0 and entry["policy_kl"] < 1e-9


def test_old_probabilities_that_are_not_the_policys_stop_the_run(tmp_path: Path) -> None:
    """Item 14."""
    trainer, watch = made(tmp_path)
    trainer.roll_out()
    assert trainer.experience is not None
    trainer.experience.logps += 0.01
    with pytest.raises(StageError) as error:
        trainer.train()
    assert str(error.value).startswith("before the first step, a token's probability differs by 1.0% from the one in")
    assert not watch.steps


def test_dropout_stops_the_run_before_the_first_step(tmp_path: Path) -> None:
    """Item 18: here nothing switched it off."""
    policy = llama(7, context=16)
    for layer in policy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer, watch = made(tmp_path, policy=policy)
    with pytest.raises(StageError, match=r"^before the first step, "):
        trainer.train()
    assert not watch.steps


# --- optimizer and schedule


@pytest.mark.parametrize("value_model", ["separate", "head"])
def test_groups_of_the_optimizer(tmp_path: Path, value_model: str) -> None:
    """Item 19: a rate each for policy and value; no bias, norm or value head decays."""
    trainer, _ = made(
        tmp_path, value_model=value_model, value_learning_rate=7e-3, arguments={"weight_decay": 0.1, "adam_beta2": 0.9}
    )
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    seen: dict[str, tuple[float, float]] = {}
    for group in optimizer.param_groups:
        assert (group["eps"], group["betas"]) == (1e-5, (0.9, 0.9))
        seen |= {names[id(parameter)]: (group["lr"], group["weight_decay"]) for parameter in group["params"]}
    assert set(seen) == set(names.values())
    for name, (rate, decay) in seen.items():
        assert rate == (3e-3 if name.startswith("policy.") else 7e-3), name
        still = "norm" in name or name.endswith("bias") or name in ("value.weight", "value.head.weight")
        assert decay == (0.0 if still else 0.1), name


def test_what_the_stage_sets() -> None:
    """Item 19, and item 7: there is no other estimator of the KL to choose."""
    assert rlhf_ppo.DEFAULTS["adam_epsilon"] == 1e-5
    assert rlhf_ppo.DEFAULTS["lr_scheduler_type"] == "linear"
    with pytest.raises(ValidationError, match="estimator"):
        rlhf_ppo.Settings.model_validate({"kind": "rlhf-ppo", "kl": {"estimator": "k3"}})


def test_policy_and_value_are_clipped_apart(tmp_path: Path) -> None:
    """Item 19: a large error of the values leaves the policy its step."""
    norms = []
    for scale in (1.0, 1000.0):
        reward = OnTokens(lambda ids, scale=scale: scale * sum(ids))  # type: ignore[misc]
        trainer, watch = made(
            tmp_path / str(scale),
            rollouts=1,
            scorers=[reward],
            kl={"coefficient": 0.0},
            arguments={"max_grad_norm": 0.1},
        )
        trainer.train()
        parts = [[g for name, g in watch.gradients[0].items() if name.startswith(part)] for part in ("policy", "value")]
        norms.append([float(torch.cat([g.flatten() for g in gradients]).norm()) for gradients in parts])
    assert norms[0] == pytest.approx([0.1, 0.1], rel=1e-3)
    assert norms[1] == pytest.approx([0.1, 0.1], rel=1e-3)


def test_target_kl_leaves_a_rollout_and_keeps_the_schedule(tmp_path: Path) -> None:
    """Item 22: with a large rate steps are left out; rollouts and learning rates are those of a full run."""
    rates = {"learning_rate": 3e-2, "max_grad_norm": 1.0}
    whole, every = made(tmp_path / "a", rollouts=5, epochs=4, arguments=rates)
    whole.train()
    short, some = made(tmp_path / "b", rollouts=5, epochs=4, target_kl=0.01, arguments=rates)
    short.train()
    assert every.steps == [rollout for rollout in range(1, 6) for _ in range(8)]
    assert len(some.steps) < len(every.steps) and set(some.steps) == {1, 2, 3, 4, 5}
    assert short.rollouts == 5 and short.state.global_step == whole.state.global_step == 40
    key = "learning_rate"
    assert [entry[key] for entry in short.history] == pytest.approx([entry[key] for entry in whole.history])
    assert all(entry["steps"] == some.steps.count(entry["rollout"]) for entry in short.history)
    assert short.history[0]["policy_kl"] < whole.history[0]["policy_kl"]


def test_target_kl_compares_a_mean_over_tokens(tmp_path: Path) -> None:
    """Item 22: above the KL per token that there is, and below that of a minibatch, it stops nothing."""
    trainer, _ = made(tmp_path / "a")
    trainer.train()
    most = max(entry["policy_kl"] for entry in trainer.history)
    again, watch = made(tmp_path / "b", target_kl=3 * most)
    again.train()
    assert most > 0 and len(watch.steps) == 12


def test_a_warmup_teaches_the_value_alone(tmp_path: Path) -> None:
    trainer, _ = made(tmp_path, value_warmup_rollouts=1, rollouts=1)
    before = weights(trainer)
    trainer.train()
    assert equal({k: v for k, v in before.items() if k.startswith("policy.")}, weights(trainer, "policy."))
    assert not equal({k: v for k, v in before.items() if k.startswith("value.")}, weights(trainer, "value."))
