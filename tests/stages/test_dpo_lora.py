"""dpo with an adapter: nothing else moves, it is held to what it was, it merges, resumes, and follows another one."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llmpipe.artifact import read_json, read_manifest
from llmpipe.errors import StoppedError
from llmpipe.training import models, reference
from llmpipe.training.ppo.shared import POLICY
from tests.stages.conftest import SMALL
from tests.stages.test_adapters import manifest
from tests.stages.test_dpo import write_rows
from tests.stages.test_lora import ADAPTERS, loaded, settings_for, trained
from tests.stages.tiny import context_for, gates_of, passed, probed, run_recipe, run_stage, stop_after

TRAINER = {"per_device_train_batch_size": 4, "max_steps": 3, "eval_steps": 3, "logging_steps": 1, "learning_rate": 2e-2}
LESS = {"data": {"builtin": "storyworld", "rows": 24}, "trainer": TRAINER}
FROZEN_ROWS = {"r": 4, "trainable_token_indices": None}


@pytest.fixture
def settings(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    return settings_for(tmp_path, make_model, tokenizer, tie_word_embeddings=True) | LESS


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
    folder = trained(given | LESS | {"lora": {"r": 4, **ADAPTERS[adapter]}}, ctx, "dpo")

    ((policy, wanted),) = policies
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    before, after = base.state_dict(), deepcopy(policy).unload().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(policy.peft_config) == [POLICY]  # and no copy of it
    moved = [p for name, p in policy.named_parameters() if "lora_B" in name]
    assert moved and all(p.detach().abs().min() > 0 for p in moved)

    model, _ = loaded(folder, ctx)
    torch.testing.assert_close(probed(model), wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(probed(model), probed(base), atol=1e-2)
    ends = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (ends[0] is ends[1]) == tied


def test_it_resumes_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"lora": {"r": 4, "use_dora": True}}
    whole = run_stage("dpo", settings, context_for(tmp_path / "a"))
    with pytest.raises(StoppedError):
        run_stage("dpo", settings, context_for(tmp_path / "b", stop=stop_after(1, "interrupt")))
    checkpoint = tmp_path / "b" / "x" / "checkpoints" / "checkpoint-1" / "model.safetensors"
    assert all(".lora_" in name for name in load_file(checkpoint))
    resumed = run_stage("dpo", settings, context_for(tmp_path / "b"))
    one, two = (load_file(tmp_path / name / "x" / "adapter" / "adapter_model.safetensors") for name in ("a", "b"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert resumed.metrics | {"tokens_per_s": 0} == whole.metrics | {"tokens_per_s": 0}


def test_what_comes_out(settings: dict[str, Any], tmp_path: Path) -> None:
    ctx = context_for(tmp_path)
    result = run_stage("dpo", settings, ctx)
    assert result.outputs == ["adapter"] and not (tmp_path / "x" / "model").exists()
    assert passed(result.gates) == gates_of("dpo", "checkpoint-replays", "base-unchanged", "adapter-merges")
    assert result.metrics["trained_parameters"] == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert result.metrics["train_loss_first"] == pytest.approx(0.693147, abs=1e-6)
    config = read_json(tmp_path / "x" / "adapter" / "adapter_config.json")
    assert config["trainable_token_indices"] is None  # the format is known by now


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers of the stages that ran."""
    seen: list[Any] = []
    real = reference.as_it_came

    def watched(trainer: Any, *given: Any) -> Any:
        seen.append(trainer)
        return real(trainer, *given)

    monkeypatch.setattr(reference, "as_it_came", watched)
    return seen


@pytest.mark.parametrize(("rows", "base"), [(FROZEN_ROWS, "m"), ({"r": 4}, "adapter+adapter")], ids=["further", "new"])
def test_an_adapter_is_held_to_what_it_was(
    rows: dict[str, Any], base: str, settings: dict[str, Any], tmp_path: Path, trainers: list[Any]
) -> None:
    """To itself as it came, with the base under it; never to the bare base."""
    one, two = (context_for(tmp_path / name) for name in ("one", "two"))
    first = trained(settings | {"lora": rows}, one, "lora")
    second = trained(settings | {"model": {"path": str(first)}}, two, "dpo")
    assert read_json(second / "adapter_config.json")["base_model_name_or_path"] == base
    (trainer,) = trainers
    assert list(trainer.model.peft_config) == [POLICY]
    before, _ = loaded(first, one)
    data = trainer.train_dataset.select(range(4))
    answers = [(row["prompt_ids"], row[side]) for row in data for side in ("chosen_ids", "rejected_ids")]
    plain = reference.plain_logps(before, answers).view(-1, 2)
    torch.testing.assert_close(trainer.reference(data), plain, atol=1e-3, rtol=0)
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert (reference.plain_logps(bare, answers).view(-1, 2) - plain).abs().mean() > 1
    assert not torch.allclose(probed(loaded(second, two)[0]), probed(before), atol=1e-2)


def test_a_base_that_moved_is_noticed(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reference.as_it_came

    def late(trainer: Any, *given: Any) -> Any:
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight[299] += 1  # of a token that no row has
        return real(trainer, *given)

    monkeypatch.setattr(reference, "as_it_came", late)
    result = run_stage("dpo", settings, context_for(tmp_path))
    assert [gate.name for gate in result.gates if not gate.passed] == ["base-unchanged"]


def test_the_bare_base_is_noticed_where_an_adapter_came(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(settings | {"lora": FROZEN_ROWS}, context_for(tmp_path / "one"), "lora")
    real = reference.HeldToReference.logps

    def bare(self: Any, data: Any) -> torch.Tensor:
        with self.model.disable_adapter():
            return real(self, data)

    monkeypatch.setattr(reference.HeldToReference, "logps", bare)
    result = run_stage("dpo", settings | {"model": {"path": str(first)}}, context_for(tmp_path / "two"))
    assert [gate.name for gate in result.gates if not gate.passed] == ["reference-unchanged"]


def test_a_token_that_was_added_survives_the_merge(tmp_path: Path, trainers: list[Any]) -> None:
    """The base has no row for the pad token, and an adapter trains none."""
    words = {"<|end|>": 0} | {f"w{number}": number for number in range(1, 40)}
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<|end|>")), eos_token="<|end|>"
    )
    torch.manual_seed(0)
    models.save(models.build("llama", SMALL, tokenizer=bare, context=32), bare, tmp_path / "m")
    data = write_rows(tmp_path, [{"prompt": f"w{n}", "chosen": "w3 w5", "rejected": "w4"} for n in range(20)])
    ctx = context_for(tmp_path)
    given = {"model": {"path": str(tmp_path / "m")}, "data": data, "lora": {"r": 4}, "trainer": TRAINER}
    result = run_stage("dpo", given, ctx)
    assert all(gate.passed for gate in result.gates)
    manifest(ctx.dir, model=given["model"])
    model, tokenizer = loaded(ctx.dir / "adapter", ctx)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 41
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == 40
    ids = torch.arange(41)[None, :32]
    torch.testing.assert_close(model.eval()(ids).logits, trainers[0].model.eval()(ids).logits, atol=1e-5, rtol=0)


CHAIN = """
name: tiny
stages:
  base:
    kind: pretrain
    tokenizer: {path: TOKENIZER}
    data: {builtin: storyworld, rows: 60}
    model: {arch: llama, config: {num_hidden_layers: 1, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}}
    context: 192
    trainer: {max_steps: 3, per_device_train_batch_size: 4}
  chat:
    kind: lora
    data: {builtin: storyworld, rows: 60}
    lora: {r: 4, trainable_token_indices: null}
    trainer: {max_steps: 3, learning_rate: 1e-2}
  liked:
    kind: dpo
    model: chat
    data: {builtin: storyworld, rows: 60}
    lora: {r: 4}
    trainer: {max_steps: 3, learning_rate: 1e-2}
  scores: {kind: eval, models: [base, chat, liked], suites: [perplexity]}
"""


def test_a_recipe_trains_an_adapter_further(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    run = run_recipe(tmp_path, CHAIN.replace("TOKENIZER", str(tmp_path / "tok")))
    configs = [read_json(run / name / "adapter/adapter_config.json") for name in ("chat", "liked")]
    assert [config["base_model_name_or_path"] for config in configs] == ["base", "base"]
    made = read_manifest(run / "liked")
    assert made is not None and all(gate.passed for gate in made.gates)
    scores = read_json(run / "scores" / "scores.json")["models"]
    assert len({round(entry["perplexity"], 6) for entry in scores.values()}) == 3
