"""PPO with a reward model on the policy's base: four adapters, one base, and the numbers of four models."""

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

from llmpipe.artifact import read_json, read_manifest
from llmpipe.data import said as turn
from llmpipe.data.preferences import Prompt
from llmpipe.errors import StageError, StoppedError
from llmpipe.export import export
from llmpipe.settings import PathSource, TrainingSettings
from llmpipe.training import adapters, flow, lora, models, reward_model
from llmpipe.training.ppo import parts
from llmpipe.training.ppo.one_base import OneBase
from llmpipe.training.ppo.policy_value import Reference, ValueNetwork, backbone_of, head_of_scores
from llmpipe.training.ppo.rollout import Answer
from llmpipe.training.ppo.scoring import Asked, ModelScorer, model_scorer
from llmpipe.training.ppo.shared import POLICY, REFERENCE, VALUE, RewardAdapter, ValueAdapter, attach
from llmpipe.training.ppo.trainer import PPOTrainer
from llmpipe.training.reward_model import RewardModel
from tests.stages.ppo_worlds import world
from tests.stages.preferred import reward_adapter
from tests.stages.test_adapters import stir
from tests.stages.test_lora import ADAPTERS, said
from tests.stages.tiny import context_for, run_recipe, stop_after

LORA = {"r": 4, "lora_alpha": 8}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 2}
PROMPTS = [[2, 40], [2, 41, 42], [2, 43], [2, 44, 45]]
ANSWERS = [[2, *range(10, 30)], [2, 50, 51, 3], [2, 90, 3]]
REWARD = "reward0"


def written(folder: Path, make_model: Any, tokenizer: Any, arch: str = "llama", **config: Any) -> None:
    """Write a model, an adapter that answers and one that scores, both on it."""
    config |= GPT2 if arch == "gpt2" else {}
    models.save(make_model(arch, **config), tokenizer, folder / "m")
    chat = adapters.Beginning(make_model(arch, **config), tokenizer, None, "../m", None)
    adapters.save_policy(stir(attach(chat.model, LORA, None, value=False)), chat, folder / "chat")
    reward_adapter(folder / "judge", make_model(arch, **config), tokenizer, lora_dropout=0.5)


def source(folder: Path) -> PathSource:
    return PathSource(path=str(folder), format=None)


def scorer_of(judge: RewardModel) -> ModelScorer:
    return ModelScorer(judge, ("judge",), judge.format.weights, 1.0, normalized=True, same_tokens=True)


def shared(
    folder: Path, model: str = "chat", options: dict[str, Any] = LORA, *, value: bool = True
) -> tuple[PeftModel, RewardModel, Any]:
    """Put a policy and the reward model on one base, as the stage does."""
    ctx = context_for(folder)
    begun = adapters.begin(source(folder / model), options, ctx)
    models.set_dropout(begun.model, 0.0, None)
    torch.manual_seed(0)
    policy = attach(begun.model, options, begun.folder, value=value)
    under = lora.written(begun, source(folder / model), ctx, ctx.output("adapter"))
    base = OneBase(policy, begun.tokenizer, under)
    return policy, base.reward_model(source(folder / "judge"), ctx), ctx


def trainer_of(
    folder: Path, policy: PreTrainedModel, scorers: list[ModelScorer], options: dict[str, Any] = LORA, **more: Any
) -> PPOTrainer:
    rollout = {"samples": 16, "max_new_tokens": 5}
    defaults = {"rollouts": 3, "rollout": rollout, "lora": options, "value_warmup_rollouts": None, **more}
    return world(folder, policy, lambda ids: 0.0, prompts=PROMPTS, ends=(3,), scorers=scorers, **defaults)


def test_the_adapter_scores_as_the_merged_model(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Read by their ids, and written again; the policy is then again what it was."""
    written(tmp_path, make_model, tokenizer)
    policy, judge, ctx = shared(tmp_path)
    policy.train()  # as it is while PPO learns; a reward's dropout is not to come on
    alone = reward_model.load(source(tmp_path / "judge"), ctx)
    assert isinstance(judge.model, RewardAdapter) and not isinstance(alone.model, RewardAdapter)
    assert said(ctx) == "policy, value, reference and the reward model judge share one base"
    before = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    torch.testing.assert_close(judge.scores(ANSWERS), alone.scores(ANSWERS), atol=1e-5, rtol=0)
    for tokens in (1, 16384):
        torch.testing.assert_close(judge.scores(ANSWERS, tokens_per_pass=tokens), judge.scores(ANSWERS))
    assert policy.active_adapter == POLICY
    assert before == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-2] for name in before} == {POLICY, VALUE}

    tokenizer.chat_template += "{# another #}"
    one, two = (
        model_scorer(model, tokenizer, name="judge", weight=1.0, chat=True, normalized=True)[0]
        for model in (judge, alone)
    )
    assert not one.same_tokens
    asked = [Asked(Prompt([turn("user", "Say something.")]), [2])]
    scores = [scorer.scores(asked, [Answer([40, 3], finished=True)], ["yes"]) for scorer in (one, two)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=0)


def test_the_value_begins_as_the_reward_model(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Item 17, in the shape of the reward's adapter: at an answer's last token it gives the reward, as it is scaled."""
    written(tmp_path, make_model, tokenizer)
    policy, judge, _ = shared(tmp_path, options={"r": 4})
    trainer = trainer_of(tmp_path, policy, [scorer_of(judge)], {"r": 4})
    assert policy.peft_config[VALUE].lora_alpha == 8  # PEFT's own, not the policy's
    assert trainer.options.rescale_value and trainer.options.value_warmup_rollouts == 0
    value, rewards = trainer.model.value, trainer.collector.rewards
    assert isinstance(value, ValueAdapter)
    trainer.roll_out()
    assert trainer.experience is not None
    sequences = trainer.experience.sequences
    last = torch.zeros_like(sequences.ids, dtype=torch.bool)
    last[torch.arange(16), sequences.prompt_lengths + sequences.lengths - 1] = True
    rows = [ids[: int(place.nonzero()) + 1].tolist() for ids, place in zip(sequences.ids, last, strict=True)]
    wanted = rewards.total(judge.scores(rows).double())
    assert wanted.std() > 0.5
    with torch.no_grad():
        found = value(sequences.ids, last)
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=0)


def test_a_value_head_on_the_policy_begins_at_0(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    written(tmp_path, make_model, tokenizer)
    policy, judge, ctx = shared(tmp_path, value=False)
    assert said(ctx) == "policy, reference and the reward model judge share one base"
    trainer = trainer_of(tmp_path, policy, [scorer_of(judge)], value_model="head")
    assert not trainer.options.rescale_value and not trainer.model.value.weight.any()


CASES = [*(("llama", True, kind) for kind in ADAPTERS), ("llama", False, "lora"), ("gpt2", True, "lora")]


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model.eval()(input_ids=torch.arange(3, 60)[None]).logits


@pytest.mark.parametrize(("arch", "tied", "kind"), CASES)
def test_policy_and_value_move_and_nothing_else_does(
    arch: str, tied: bool, kind: str, make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Neither base, reference nor reward; stopped and resumed, saved and merged, it is the same policy to the bit."""
    written(tmp_path, make_model, tokenizer, arch, tie_word_embeddings=tied)
    options = {"r": 4, **ADAPTERS[kind]}
    base = make_model(arch, tie_word_embeddings=tied, **(GPT2 if arch == "gpt2" else {})).state_dict()

    def fitted(folder: Path, stop: Any = lambda: None) -> PPOTrainer:
        policy, judge, _ = shared(tmp_path, "m", options)
        rates = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}
        trainer = trainer_of(folder, policy, [scorer_of(judge)], options, rollouts=3, epochs=1, arguments=rates)
        trainer.begun = deepcopy(policy.state_dict())  # type: ignore[attr-defined]
        ctx = context_for(folder, stop=stop)
        trainer.args.output_dir = str(ctx.checkpoints)
        flow.fit(trainer, ctx, TrainingSettings(kind="rlhf-ppo"))
        return trainer

    whole = fitted(tmp_path / "whole")
    policy: Any = whole.model.policy
    assert whole.collector.reference.is_unchanged
    begun, after = whole.begun, policy.state_dict()  # type: ignore[attr-defined]
    moved = {name for name in begun if not torch.equal(begun[name], after[name])}
    heads = {"value.head.weight", "value.head.bias"}
    assert {f"policy.{name}" for name in moved} == whole.model.trained().keys() - heads
    assert {name.split(".")[-2] for name in moved} <= {POLICY, VALUE, "lora_magnitude_vector"}
    plain = deepcopy(policy).unload().state_dict()
    assert base.keys() == plain.keys() and all(torch.equal(base[name], plain[name]) for name in base)

    with pytest.raises(StoppedError):
        fitted(tmp_path / "parted", stop_after(3, "interrupt"))
    checkpoint = tmp_path / "parted" / "x" / "checkpoints" / "checkpoint-3" / "model.safetensors"
    assert load_file(checkpoint).keys() == whole.model.trained().keys()
    resumed = fitted(tmp_path / "parted")
    one, two = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)

    wanted = logits(policy)
    chat = adapters.Beginning(policy, tokenizer, None, "../m", None)
    adapters.save_policy(policy, chat, tmp_path / "saved")
    assert not any("reward" in name or "score" in name for name in load_file(tmp_path / "saved" / adapters.WEIGHTS))
    merged, _ = models.load(source(tmp_path / "saved"), context_for(tmp_path))
    torch.testing.assert_close(logits(merged), wanted, atol=1e-5, rtol=0)
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied


def test_a_reward_that_moves_is_noticed(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    written(tmp_path, make_model, tokenizer)
    policy, judge, _ = shared(tmp_path)
    trainer = trainer_of(tmp_path, policy, [scorer_of(judge)])
    with torch.no_grad():
        next(parameter for name, parameter in policy.named_parameters() if f".{REWARD}." in name).add_(1e-3)
    assert not trainer.collector.reference.is_unchanged


def apart(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[PeftModel, RewardModel]:
    """Make four models of the parts that are shared: each a base of its own, reference and reward merged."""
    ctx = context_for(folder)
    begun = adapters.begin(source(folder / "chat"), LORA, ctx)
    policy = attach(begun.model, LORA, begun.folder, value=False)
    policy.delete_adapter(REFERENCE)
    reference, _ = models.load(source(folder / "chat"), ctx)
    other, judge, _ = shared(folder)
    assert isinstance(judge.model, RewardAdapter)
    judge.model.lend_to_value()
    other.set_adapter(VALUE)
    for name in (POLICY, REFERENCE, REWARD):
        other.delete_adapter(name)
    network = ValueNetwork(backbone_of(other), head_of_scores(judge.model.score, torch.ones(1)))
    monkeypatch.setattr(parts, "AdapterReference", lambda _: Reference(reference))
    monkeypatch.setattr(parts, "value_of", lambda *_: network)
    monkeypatch.setattr(parts, "value_source", lambda *_: True)
    return policy, reward_model.load(source(folder / "judge"), ctx)


def test_one_base_gives_the_losses_of_four_models(
    make_model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same policy loss, value loss and KL at every step, to 1e-4."""
    written(tmp_path, make_model, tokenizer)

    def followed(folder: Path, policy: PeftModel, judge: RewardModel) -> tuple[list[float], PPOTrainer]:
        trainer = trainer_of(folder, policy, [scorer_of(judge)], rollouts=4, arguments={"learning_rate": 1e-2})
        seen: list[float] = []
        end = trainer._end_minibatch

        def watched() -> None:
            sums = dict(trainer.minibatch_sums)
            seen.extend(sums[name] / sums["tokens"] for name in ("policy_loss", "value_loss", "policy_kl"))
            seen.append(trainer.metrics["kl"])
            end()

        trainer._end_minibatch = watched  # type: ignore[method-assign]
        trainer.train()
        return seen, trainer

    policy, judge, _ = shared(tmp_path)
    one, trainer = followed(tmp_path / "one", policy, judge)
    four, others = followed(tmp_path / "four", *apart(monkeypatch, tmp_path))
    assert not isinstance(others.model.value, ValueAdapter)
    assert len({id(base) for base in (others.model.policy, others.model.value, others.collector.reference.model)}) == 3
    assert len(one) == 4 * 4 * 4
    assert one == pytest.approx(four, abs=1e-4)
    assert trainer.history[-1]["kl"] > 0.01


def with_another_base(folder: Path, tokenizer: Any) -> None:
    models.save(models.load(source(folder / "m"), context_for(folder))[0], tokenizer, folder / "n")
    config = read_json(folder / "judge" / "adapter_config.json")
    adapters.LoraConfig(**{**config, "base_model_name_or_path": "../n"}).save_pretrained(folder / "judge")


def with_another_tokenizer(folder: Path, tokenizer: Any) -> None:
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder / "judge")


def whole(folder: Path, _: Any) -> None:
    merged = reward_model.load(source(folder / "judge"), context_for(folder))
    (folder / "judge" / "adapter_config.json").unlink()
    reward_model.save(merged, folder / "judge")


def with_more(folder: Path, _: Any) -> None:
    config = read_json(folder / "judge" / "adapter_config.json")
    adapters.LoraConfig(**{**config, "bias": "lora_only"}).save_pretrained(folder / "judge")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (whole, "it is no adapter"),
        (with_another_base, "its adapter is on another base"),
        (with_another_tokenizer, "it has another tokenizer"),
        (with_more, "more than an adapter was trained"),
    ],
)
def test_what_is_not_on_the_base_is_a_model_of_its_own(
    change: Any, reason: str, make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    written(tmp_path, make_model, tokenizer)
    wanted = reward_model.load(source(tmp_path / "judge"), context_for(tmp_path)).scores(ANSWERS)
    change(tmp_path, tokenizer)
    policy, judge, ctx = shared(tmp_path)
    assert said(ctx) == (
        f"policy, value and reference share one base; the reward model judge is a model of its own, for {reason}"
    )
    assert REWARD not in policy.peft_config
    torch.testing.assert_close(judge.scores(ANSWERS), wanted, atol=1e-5, rtol=0)
    trainer = trainer_of(tmp_path, policy, [scorer_of(judge)])
    assert not trainer.options.rescale_value and trainer.options.value_warmup_rollouts == 2


def test_an_adapter_that_does_not_fit_says_so(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    written(tmp_path, make_model, tokenizer)
    reward_adapter(tmp_path / "judge", make_model(intermediate_size=96), tokenizer)
    with pytest.raises(StageError, match="the adapter does not fit LlamaForCausalLM: ") as caught:
        shared(tmp_path)
    assert caught.value.hint == "was the base changed since?"


def test_several_reward_models_on_one_base(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Each keeps its own adapter; the value begins from neither."""
    written(tmp_path, make_model, tokenizer)
    reward_adapter(tmp_path / "other", make_model(), tokenizer, lora_alpha=64)
    policy, one, ctx = shared(tmp_path)
    under = adapters.Adapter(tmp_path / "x", source(tmp_path / "m"), ctx)
    two = OneBase(policy, tokenizer, under).reward_model(source(tmp_path / "other"), ctx)
    for judge, name in ((one, "judge"), (two, "other")):
        alone = reward_model.load(source(tmp_path / name), ctx)
        torch.testing.assert_close(judge.scores(ANSWERS), alone.scores(ANSWERS), atol=1e-5, rtol=0)
    assert not torch.allclose(one.scores(ANSWERS), two.scores(ANSWERS), atol=1e-2)
    trainer = trainer_of(tmp_path, policy, [scorer_of(one), scorer_of(two)])
    assert not trainer.options.rescale_value
    assert not trainer.model.value.head.weight.any()  # type: ignore[union-attr]


CHAIN = """
name: tiny
stages:
  base:
    kind: pretrain
    tokenizer: {path: TOKENIZER}
    data: {builtin: storyworld, rows: 60}
    model: {arch: llama, config: SHAPE}
    context: 192
    trainer: {max_steps: 3, per_device_train_batch_size: 4}
  chat:
    kind: lora
    data: {builtin: storyworld, rows: 60}
    lora: {r: 4, TOKENS}
    trainer: {max_steps: 2, learning_rate: 1e-2}
  judge:
    kind: reward
    model: chat
    lora: {r: 4}
    data: {builtin: storyworld, rows: 60}
    trainer: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1e-2}
  ppo:
    kind: rlhf-ppo
    lora: {r: 4}
    rollouts: 2
    rollout: {samples: 8, max_new_tokens: 6}
    trainer: {learning_rate: 1e-2}
  scores: {kind: eval, models: [base, chat, ppo], suites: [perplexity]}
"""


@pytest.mark.parametrize(("tokens", "under"), [("", "chat+adapter"), ("trainable_token_indices: null", "base")])
def test_a_chain_whose_reward_model_is_an_adapter(
    tokens: str, under: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    shape = "{num_hidden_layers: 1, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}"
    text = CHAIN.replace("TOKENIZER", str(tmp_path / "tok")).replace("SHAPE", shape).replace("TOKENS", tokens)
    run = run_recipe(tmp_path, text)
    assert "policy, value, reference and the reward model judge share one base" in capsys.readouterr().err
    named = [read_json(run / name / "adapter" / "adapter_config.json") for name in ("chat", "judge", "ppo")]
    assert [config["base_model_name_or_path"] for config in named] == ["base", under, under]
    made = read_manifest(run / "judge")
    assert made is not None and "adapter/adapter_model.safetensors" in made.outputs
    assert not (run / "judge" / "model").exists()
    scores = read_json(run / "scores" / "scores.json")["models"]
    assert len({round(entry["perplexity"], 6) for entry in scores.values()}) == 3

    ctx = context_for(tmp_path)
    export(run, "judge", tmp_path / "out", force=False, gguf=None)
    one, two = (reward_model.load(source(folder), ctx) for folder in (tmp_path / "out", run / "judge" / "adapter"))
    assert one.format == two.format
    torch.testing.assert_close(one.scores(ANSWERS), two.scores(ANSWERS), atol=1e-6, rtol=0)
    assert "A reward model of" in (tmp_path / "out" / "README.md").read_text()
