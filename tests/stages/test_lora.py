"""sft with an adapter: nothing else moves, it resumes to the bit, merges without a trace, and leads to PPO."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from llmpipe.artifact import read_json, read_manifest
from llmpipe.context import Context
from llmpipe.errors import StageError, StoppedError
from llmpipe.settings import PathSource
from llmpipe.training import adapters, flow, models
from llmpipe.training.ppo import shared
from tests.stages.test_adapters import manifest
from tests.stages.tiny import context_for, probed, run_recipe, run_stage, stop_after

STEPS = 8
TRAINER = {
    "per_device_train_batch_size": 2,
    "max_steps": STEPS,
    "eval_steps": 4,
    "logging_steps": 1,
    "learning_rate": 1e-2,
}


def settings_for(folder: Path, make_model: Any, tokenizer: Any, arch: str = "llama", **config: Any) -> dict[str, Any]:
    """Write a model down, and return how a stage trains on it."""
    models.save(make_model(arch, context=192, **config), tokenizer, folder / "m")
    data = {"builtin": "storyworld", "rows": 60}
    return {"model": {"path": str(folder / "m")}, "data": data, "context": 192, "lora": {"r": 4}, "trainer": TRAINER}


@pytest.fixture
def settings(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    return settings_for(tmp_path, make_model, tokenizer, tie_word_embeddings=True)


def trained(settings: dict[str, Any], ctx: Context, kind: str = "lora") -> Path:
    """Run the stage, and say in a manifest that it is done; returns its adapter."""
    run_stage(kind, settings, ctx)
    manifest(ctx.dir, model=settings["model"])
    return ctx.dir / "adapter"


def loaded(folder: Path, ctx: Context) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return models.load(PathSource.model_validate({"path": str(folder)}), ctx)


def said(ctx: Context) -> str:
    return "\n".join(event["text"] for event in ctx.events if event["event"] == "say")  # type: ignore[attr-defined]


ADAPTERS = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True, "lora_alpha": 2}}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("arch", "tied"), [("llama", True), ("llama", False), ("gpt2", True)], ids=["tied", "untied", "gpt2"]
)
def test_the_base_stays_and_the_merged_model_is_the_trained_one(
    adapter: str, arch: str, tied: bool, make_model: Any, tokenizer: Any, tmp_path: Path, policies: list[Any]
) -> None:
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 2} if arch == "gpt2" else {}
    given = settings_for(tmp_path, make_model, tokenizer, arch, tie_word_embeddings=tied, **shape)
    ctx = context_for(tmp_path)
    folder = trained(given | {"lora": {"r": 4, **ADAPTERS[adapter]}}, ctx)

    ((policy, wanted),) = policies
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    before, after = base.state_dict(), deepcopy(policy).unload().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = [name for name, p in policy.named_parameters() if "lora_B" in name and p.detach().abs().min() > 0]
    assert len(moved) == sum("lora_B" in name for name, _ in policy.named_parameters()) > 0

    model, _ = loaded(folder, ctx)
    torch.testing.assert_close(probed(model), wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(probed(model), probed(base), atol=1e-2)
    ends = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (ends[0] is ends[1]) == tied
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(probed(again), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_without_its_adapter_the_model_answers_as_before_to_the_bit(
    adapter: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[torch.Tensor] = []

    def without(policy: Any, *_: Any) -> None:
        with shared.using(policy, None):
            answers.append(probed(policy))

    monkeypatch.setattr(adapters, "save_policy", without)
    run_stage("lora", settings | {"lora": {"r": 4, **ADAPTERS[adapter]}}, context_for(tmp_path))
    assert torch.equal(answers[0], probed(AutoModelForCausalLM.from_pretrained(tmp_path / "m")))


def test_a_base_that_moved_by_one_bit_fails_its_gate(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = flow.fit

    def careless(trainer: Any, *given: Any) -> dict[str, Any]:
        metrics = fit(trainer, *given)
        weight = trainer.model.get_base_model().model.norm.weight.data
        weight[0] = torch.nextafter(weight[0], weight[0] + 1)
        return metrics

    monkeypatch.setattr(flow, "fit", careless)
    result = run_stage("lora", settings, context_for(tmp_path))
    assert [gate.name for gate in result.gates if not gate.passed] == ["base-unchanged"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_special_tokens_of_the_conversations_are_learned(
    tied: bool, make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    given = settings_for(tmp_path, make_model, tokenizer, tie_word_embeddings=tied)
    ctx = context_for(tmp_path)
    model, _ = loaded(trained(given, ctx), ctx)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    wanted = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"])
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        one, two = getattr(base, layer)().weight, getattr(model, layer)().weight
        changed = (one != two).any(dim=1).nonzero().flatten().tolist()
        # nothing predicts the first token, and its row is only trained where it is one with the input's
        assert set(changed) == set(wanted) or (not tied and layer == "get_output_embeddings")
        assert set(changed) <= set(wanted)
        assert set(changed) >= set(wanted[1:])
    assert "and the rows of <|" in said(ctx)


def test_an_output_layer_with_a_bias_keeps_it(
    make_model: Any, tokenizer: Any, tmp_path: Path, policies: list[Any]
) -> None:
    """Peft's layer for rows knows no bias."""
    given = settings_for(tmp_path, make_model, tokenizer, "phi")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "m")
    ctx = context_for(tmp_path)
    folder = trained(given, ctx)
    assert list(read_json(folder / "adapter_config.json")["trainable_token_indices"]) == ["model.embed_tokens"]
    merged, _ = loaded(folder, ctx)
    assert torch.equal(merged.lm_head.bias, model.lm_head.bias)
    torch.testing.assert_close(probed(merged), policies[0][1], atol=1e-5, rtol=0)


def test_what_is_trained_is_said_and_counted(settings: dict[str, Any], tmp_path: Path) -> None:
    ctx = context_for(tmp_path)
    trainer = {"max_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0}
    settings |= {"lora": {"r": 4, "trainable_token_indices": None}, "trainer": trainer}
    result = run_stage("lora", settings, ctx)
    count = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert result.outputs == ["adapter"]
    assert result.metrics["trained_parameters"] == count
    base = result.metrics["parameters"] - count
    assert result.metrics["trained_share"] == count / base
    line = "an adapter on down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj: "
    assert f"{line}{count:,} parameters are trained, {count / base:.2%} of the model's" in said(ctx)
    rates = [json.loads(line).get("learning_rate") for line in (ctx.dir / "metrics.jsonl").read_text().splitlines()]
    assert {rate for rate in rates if rate is not None} == {2e-4}
    assert {gate.name for gate in result.gates} >= {"end-is-learned", "base-unchanged", "adapter-merges"}
    assert all(gate.passed for gate in result.gates)
    assert read_json(tmp_path / "x" / "adapter" / "adapter_config.json")["base_model_name_or_path"] == "m"


def test_the_rows_that_are_said_are_those_that_are_trained(
    settings: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    letters = tokenizer.convert_tokens_to_ids(["x", "!"])
    ctx = context_for(tmp_path)
    settings |= {"lora": {"r": 4, "trainable_token_indices": letters}, "trainer": TRAINER | {"max_steps": 1}}
    run_stage("lora", settings, ctx)
    assert "v_proj and the rows of !, x: " in said(ctx)


def test_sft_with_the_key_is_the_same_stage(settings: dict[str, Any], tmp_path: Path) -> None:
    folders = [trained(settings, context_for(tmp_path / kind), kind) for kind in ("lora", "sft")]
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert AutoTokenizer.from_pretrained(folders[0]).chat_template


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_recomputed_activations_lead_to_the_same_adapter(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Under frozen embeddings no input wants a gradient, which has left adapters untrained."""
    saved = []
    for key, trainer in (("plain", TRAINER), ("recomputed", TRAINER | {name: True})):
        run_stage("lora", settings | {"trainer": trainer | {"max_steps": 2}}, context_for(tmp_path / key))
        saved.append(load_file(tmp_path / key / "x" / "adapter" / "adapter_model.safetensors"))
    assert all(saved[0][key].abs().max() > 0 for key in saved[0])
    assert all(torch.allclose(saved[0][key], saved[1][key], atol=1e-5) for key in saved[0])


def test_it_resumes_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"lora": {"r": 4, "lora_dropout": 0.1, "use_dora": True}}
    whole = run_stage("lora", settings, context_for(tmp_path / "0"))
    for stop_at in (3, STEPS):
        folder = tmp_path / str(stop_at)
        with pytest.raises(StoppedError):
            run_stage("lora", settings, context_for(folder, stop=stop_after(stop_at, "interrupt")))
        checkpoint = folder / "x" / "checkpoints" / f"checkpoint-{stop_at}" / "model.safetensors"
        assert all(".lora_" in name or "trainable_tokens_delta" in name for name in load_file(checkpoint))
        ctx = context_for(folder)
        resumed = run_stage("lora", settings, ctx)
        assert f"resuming from step {stop_at}" in said(ctx)
        one, two = (load_file(run / "x" / "adapter" / "adapter_model.safetensors") for run in (tmp_path / "0", folder))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert resumed.metrics | {"tokens_per_s": 0} == whole.metrics | {"tokens_per_s": 0}


def test_a_checkpoint_that_misses_something_is_an_error(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run_stage("lora", settings, context_for(tmp_path, stop=stop_after(3, "interrupt")))
    with pytest.raises(StageError, match="the checkpoint has no base_model") as caught:
        run_stage("lora", settings | {"lora": {"r": 4, "use_dora": True}}, context_for(tmp_path))
    assert caught.value.hint == "--force begins the stage again"


def test_the_best_step_is_kept(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policies: list[Any]
) -> None:
    settings |= {"trainer": TRAINER | {"eval_steps": 2, "max_steps": 6}}
    losses = iter([5.0, 4.0, 3.0, 7.0, 7.0])  # before, steps 2, 4 and 6, at the end
    monkeypatch.setattr("llmpipe.training.flow.Measured.held_out_loss", lambda self: next(losses))
    result = run_stage("lora", settings, context_for(tmp_path))
    assert (result.metrics["best_step"], result.metrics["held_out_loss"]) == (4, 3.0)
    best = load_file(tmp_path / "x" / "checkpoints" / "checkpoint-4" / "model.safetensors")
    kept = dict(policies[0][0].named_parameters())
    assert all(torch.equal(kept[name], tensor) for name, tensor in best.items())


@pytest.mark.parametrize(
    ("tied", "modules", "message"),
    [
        (True, ["q_proj", "embed_tokens"], "which are one matrix in this model: merged, the adapter of one would"),
        (True, ["q_proj", "lm_head"], "which are one matrix in this model: merged, the adapter of one would"),
        (False, ["q_proj", "lm_head"], "lora.target_modules names the output layer, where TRL would not train"),
        (True, ["c_attn"], "lora.target_modules: Target modules {'c_attn'} not found in the base model"),
    ],
)
def test_what_could_not_be_right_is_refused(
    tied: bool, modules: list[str], message: str, make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    given = settings_for(tmp_path, make_model, tokenizer, tie_word_embeddings=tied)
    with pytest.raises(StageError) as caught:
        run_stage("lora", given | {"lora": {"target_modules": modules}}, context_for(tmp_path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "base", "reason"),
    [
        ({"r": 4, "trainable_token_indices": None}, "m", None),
        ({"r": 4}, "adapter+adapter", "it has trainable_token_indices"),
    ],
)
def test_an_adapter_is_trained_further(
    asked: dict[str, Any], base: str, reason: str | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    first = trained(settings | {"lora": asked}, context_for(tmp_path / "one"))
    ctx = context_for(tmp_path / "two")
    further = settings | {"lora": {"lora_dropout": 0.1}, "model": {"path": str(first)}}
    second = trained(further, ctx)
    assert read_json(second / "adapter_config.json")["base_model_name_or_path"] == base
    assert (reason or "is merged into its model") in said(ctx) if reason else "is merged" not in said(ctx)
    assert read_json(second / "adapter_config.json")["lora_dropout"] == 0.1
    model, _ = loaded(second, ctx)
    assert not torch.allclose(probed(model), probed(loaded(first, ctx)[0]), atol=1e-2)


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
    trainer: {max_steps: 3, learning_rate: 1e-2}
  judge:
    kind: reward
    model: chat
    data: {builtin: storyworld, rows: 60}
    trainer: {max_steps: 2, per_device_train_batch_size: 4}
  ppo:
    kind: rlhf-ppo
    reward: judge
    lora: {r: 4}
    rollouts: 2
    value_warmup_rollouts: 0
    rollout: {samples: 8, max_new_tokens: 6}
    trainer: {learning_rate: 1e-2}
  scores: {kind: eval, models: [base, chat, ppo], suites: [perplexity]}
"""


@pytest.mark.parametrize(("tokens", "under"), [("", "chat+adapter"), ("trainable_token_indices: null", "base")])
def test_a_chain_of_adapters_on_one_base(
    tokens: str, under: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    shape = "{num_hidden_layers: 1, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}"
    text = CHAIN.replace("TOKENIZER", str(tmp_path / "tok")).replace("SHAPE", shape).replace("TOKENS", tokens)
    run = run_recipe(tmp_path, text)
    named = [
        read_json(run / name / "adapter/adapter_config.json")["base_model_name_or_path"] for name in ("chat", "ppo")
    ]
    assert named == ["base", under]
    made = read_manifest(run / "chat")
    assert made is not None and made.metrics["held_out_loss"] < made.metrics["held_out_loss_before"]
    scores = read_json(run / "scores" / "scores.json")["models"]
    assert len({round(entry["perplexity"], 6) for entry in scores.values()}) == 3
