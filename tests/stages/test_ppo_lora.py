"""PPO with adapters: the right gradients on one shared base, the right reference, and nothing else that moves."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from llmpipe.settings import TrainingSettings
from llmpipe.stages.rlhf_ppo import Settings
from llmpipe.training import flow
from llmpipe.training.ppo import core
from llmpipe.training.ppo.policy_value import PolicyValue, Reference, ValueNetwork, backbone_of, joined, zero_head
from llmpipe.training.ppo.shared import POLICY, REFERENCE, VALUE, AdapterReference, ValueAdapter, attach, using
from llmpipe.training.ppo.trainer import PPOTrainer
from tests.stages.ppo_worlds import llama, world
from tests.stages.tiny import context_for, stop_after

LORA = {"r": 4, "lora_alpha": 8}
SEQUENCES = joined([[2, 3], [4, 2, 1, 3]], [[5, 6, 1], [7, 1]], pad_id=0)


def stirred(base: PreTrainedModel, *, value: bool = True, folder: Path | None = None) -> PeftModel:
    """Attach adapters and move them away from where they begin, so that each gives other numbers."""
    policy = attach(base, LORA, folder, value=value)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name and f".{REFERENCE}." not in name:
                parameter.normal_(0, 0.1)
    return policy


def merged(policy: PeftModel, adapter: str) -> PreTrainedModel:
    """Return a plain model that has one of the adapters in its weights."""
    copied = deepcopy(policy)
    copied.set_adapter(adapter)
    return copied.merge_and_unload(adapter_names=[adapter])


def ppo_gradients(model: PolicyValue) -> dict[str, Tensor]:
    """Return the gradient of a PPO loss by parameter name."""
    ids, prompts, lengths = SEQUENCES.ids, SEQUENCES.prompt_lengths, SEQUENCES.lengths
    logps, values = model(ids, prompts, lengths)
    advantages = torch.linspace(-1, 1, len(logps))
    loss = core.policy_loss(logps, logps.detach() - 0.05, advantages, clip=0.2, dual_clip=None).sum()
    loss = loss + core.value_loss(values, values.detach(), advantages, clip=None).sum()
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def head_of(seed: int) -> torch.nn.Linear:
    torch.manual_seed(seed)
    head = zero_head(32)
    torch.nn.init.normal_(head.weight)
    return head


def test_gradients_are_those_of_two_models() -> None:
    """One base with two adapters against two copies of the base, each with one."""
    shared = stirred(llama(16))
    head = head_of(1)
    found = ppo_gradients(PolicyValue(shared, ValueAdapter(shared, head), temperature=1.0))

    apart = deepcopy(shared)
    for_value = deepcopy(shared)
    for_value.set_adapter(VALUE)
    apart.delete_adapter(VALUE)
    for_value.delete_adapter(POLICY)
    apart.set_adapter(POLICY)
    network = ValueNetwork(backbone_of(for_value), deepcopy(head))
    wanted = ppo_gradients(PolicyValue(apart, network, temperature=1.0))

    of_policy = {name: grad for name, grad in wanted.items() if name.startswith("policy.")}
    # the network begins at the backbone: the same names as in the shared model from there on
    network_names = {name for name in wanted if name.startswith("value.backbone.")}
    of_value = {name.replace("value.backbone", "policy.base_model.model.model"): wanted[name] for name in network_names}
    assert len(of_policy) == len(of_value) == 14
    for name, grad in (of_policy | of_value).items():
        assert grad.abs().max() > 0 or "lora_A" in name
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)
    assert found.keys() == of_policy.keys() | of_value.keys() | {"value.head.weight", "value.head.bias"}


def test_the_policy_and_the_value_each_read_through_their_own_adapter() -> None:
    policy = stirred(llama(16))
    head = head_of(1)
    model = PolicyValue(policy, ValueAdapter(policy, head), temperature=0.7)
    logps, values = model(SEQUENCES.ids, SEQUENCES.prompt_lengths, SEQUENCES.lengths)
    value_base = backbone_of(merged(policy, VALUE))
    plain = PolicyValue(merged(policy, POLICY), ValueNetwork(value_base, head), temperature=0.7)
    wanted = plain(SEQUENCES.ids, SEQUENCES.prompt_lengths, SEQUENCES.lengths)
    torch.testing.assert_close(logps, wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, wanted[1], rtol=1e-5, atol=1e-5)


def test_another_adapter_leaves_no_trace() -> None:
    """peft's set_adapter freezes what is not active."""
    policy = stirred(llama(16))
    before = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    for adapter in (VALUE, None):
        with using(policy, adapter):
            pass
        assert policy.active_adapter == POLICY
        assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == before
        assert policy.get_model_status().enabled is True
    assert {name.split(".")[-2] for name in before} == {POLICY, VALUE}


def test_a_fresh_policy_is_its_reference_to_the_bit() -> None:
    base = llama(16)
    plain = PolicyValue(deepcopy(base), zero_head(32), temperature=1.0)
    policy = attach(base, LORA, None, value=True)
    model = PolicyValue(policy, ValueAdapter(policy, zero_head(32)), temperature=1.0)
    reference = AdapterReference(policy)
    ids = (SEQUENCES.ids, SEQUENCES.prompt_lengths, SEQUENCES.lengths)
    assert torch.equal(model(*ids)[0], reference(model, SEQUENCES))
    assert torch.equal(model(*ids)[0], Reference(plain.policy)(plain, SEQUENCES))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    assert torch.equal(reference(model, SEQUENCES), Reference(plain.policy)(plain, SEQUENCES))
    assert not torch.allclose(model(*ids)[0], reference(model, SEQUENCES))


def even(ids: list[int]) -> float:
    """Reward a share of even tokens."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


def trainer_of(folder: Path, policy: PeftModel, **settings: Any) -> PPOTrainer:
    defaults = {"rollouts": 3, "rollout": {"samples": 16, "max_new_tokens": 4}, "lora": LORA}
    return world(folder, policy, even, prompts=[[2, 3], [4, 2, 1]], ends=(1,), **{**defaults, **settings})


@pytest.mark.parametrize("value_model", ["separate", "head"])
def test_only_adapters_and_head_move(tmp_path: Path, value_model: str) -> None:
    base = llama(16)
    before = deepcopy(base.state_dict())
    policy = attach(base, LORA, None, value=value_model == "separate")
    trainer = trainer_of(tmp_path, policy, value_model=value_model, value_warmup_rollouts=0)
    begun = {name: parameter.detach().clone() for name, parameter in trainer.model.trained().items()}
    trainer.train()

    assert trainer.collector.reference.is_unchanged
    moved = {name for name, parameter in trainer.model.trained().items() if not torch.equal(parameter, begun[name])}
    assert moved == begun.keys()
    assert all("lora_" in name or name.startswith("value.") for name in moved)
    after = policy.unload().state_dict()  # the base, without adapters
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_policy_and_value_adapters_have_their_own_learning_rates(tmp_path: Path) -> None:
    policy = attach(llama(16), LORA, None, value=True)
    trainer = trainer_of(tmp_path, policy, value_learning_rate=7e-3, arguments={"learning_rate": 1e-3})
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert rates.keys() == trainer.model.trained().keys()
    assert {rate for name, rate in rates.items() if f".{POLICY}." in name} == {1e-3}
    assert {rate for name, rate in rates.items() if f".{VALUE}." in name or name.startswith("value.")} == {7e-3}


def test_policy_and_value_are_clipped_apart(tmp_path: Path) -> None:
    policy = attach(llama(16), LORA, None, value=True)
    trainer = trainer_of(tmp_path, policy, arguments={"max_grad_norm": 1.0})
    for name, parameter in trainer.model.trained().items():
        parameter.grad = torch.full_like(parameter, 1e-6 if trainer.model.part_of(name) == "policy" else 1e3)
    trainer._clip_grad_norm(trainer.model)
    grads = {name: parameter.grad for name, parameter in trainer.model.trained().items()}
    assert all(torch.all(grad == 1e-6) for name, grad in grads.items() if f".{POLICY}." in name)
    assert sum(grad.square().sum() for name, grad in grads.items() if f".{POLICY}." not in name) <= 1.0001


def test_the_first_ratio_is_one_and_the_first_kl_zero(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, attach(llama(16), LORA, None, value=True), rollouts=1, epochs=1, minibatches=1)
    trainer.train()
    assert trainer.history[0]["kl"] == 0
    assert trainer.ratio_most < 1e-5


def test_adapters_learn(tmp_path: Path) -> None:
    base = llama(16)
    with torch.no_grad():
        base.lm_head.weight.mul_(20)  # of an untrained model it is so small that hidden states hardly matter
    trainer = trainer_of(
        tmp_path,
        attach(base, {"r": 8, "lora_alpha": 16}, None, value=True),
        rollouts=25,
        rollout={"samples": 64, "max_new_tokens": 4},
        kl={"coefficient": 0.02},
        arguments={"learning_rate": 1e-2},
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.history]
    assert rewards[-1] > rewards[0] + 0.25, rewards


def test_a_checkpoint_holds_what_is_trained_and_resumes_to_the_bit(tmp_path: Path) -> None:
    """Stopped in the middle of a rollout."""

    def fitted(folder: Path, stop: Any = lambda: None) -> PPOTrainer:
        policy = attach(llama(16), LORA, None, value=True)
        trainer = trainer_of(folder, policy, arguments={"save_strategy": "steps", "save_steps": 1})
        ctx = context_for(folder, stop=stop)
        trainer.args.output_dir = str(ctx.checkpoints)
        flow.fit(trainer, ctx, TrainingSettings(kind="rlhf-ppo"))
        return trainer

    whole = fitted(tmp_path / "whole")
    parted = tmp_path / "parted"
    with pytest.raises(flow.StoppedError):
        fitted(parted, stop_after(6, "interrupt"))
    checkpoint = parted / "x" / "checkpoints" / "checkpoint-6"
    assert load_file(checkpoint / "model.safetensors").keys() == whole.model.trained().keys()
    resumed = fitted(parted)
    assert whole.state.global_step == resumed.state.global_step == 12
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(resumed.model.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": {"lora_dropout": 0.1}}, "lora_dropout makes the probabilities before and after a step differ"),
        ({"lora": {}, "trainer": {"gradient_checkpointing": True}}, "value_model: head"),
    ],
)
def test_what_cannot_be_right_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.model_validate({"kind": "rlhf-ppo", **changes})
    Settings.model_validate({"kind": "rlhf-ppo", **changes, "value_model": "head", "lora": {"lora_dropout": 0}})


def test_recomputed_activations_give_the_same_gradients_with_a_head() -> None:
    policy = stirred(llama(16), value=False).train()
    model = PolicyValue(policy, head_of(2), temperature=1.0)
    plain = ppo_gradients(model)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_activation_checkpointing
    recomputed = ppo_gradients(model)
    assert plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-7) for name in plain)
