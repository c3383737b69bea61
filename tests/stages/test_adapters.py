"""Adapters as artifacts: made by a stage, found again with their base, merged without a trace, trained further."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llmpipe.artifact import Input, Manifest, read_json, read_manifest, write_json
from llmpipe.context import Context
from llmpipe.errors import StageError
from llmpipe.settings import PathSource, StageSource
from llmpipe.training import adapters, models
from llmpipe.training.ppo.policy_value import PolicyValue, joined, zero_head
from llmpipe.training.ppo.shared import POLICY, REFERENCE, AdapterReference, attach
from tests.stages.conftest import SMALL
from tests.stages.tiny import run_recipe

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
IDS = torch.arange(5, 25)[None]

MakeModel = Callable[..., PreTrainedModel]


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def stir(model: PreTrainedModel) -> PreTrainedModel:
    """Move an adapter away from where it begins, which is nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    return model


@pytest.fixture
def base(tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model's folder."""
    models.save(make_model(), tokenizer, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def elsewhere(base: Path, tmp_path: Path, make_model: MakeModel) -> tuple[Path, torch.Tensor]:
    """An adapter as peft itself writes one, and the logits that it gives."""
    config = LoraConfig(task_type="CAUSAL_LM", **{**LORA, "lora_dropout": 0.1})
    adapted = stir(get_peft_model(make_model(), config))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "elsewhere")
    return tmp_path / "elsewhere", logits(adapted)


def manifest(folder: Path, *, model: dict[str, Any]) -> None:
    """Say that a stage is done, and which model it read."""
    known = {"kind": "x", "stage_version": 1, "fingerprint": "f", "seed": 0, "settings": {}, "outputs": {}}
    rest = {"metrics": {}, "gates": [], "versions": {}, "device": "cpu", "started": "", "seconds": 0.0}
    read = [Input(field="model", source=model, identity="i")]
    write_json(folder / "manifest.json", Manifest(name=folder.name, inputs=read, **known, **rest))


def test_a_merged_adapter_gives_the_adapters_logits(elsewhere: tuple[Path, torch.Tensor], ctx: Context) -> None:
    folder, wanted = elsewhere
    model, tokenizer = models.load(PathSource(path=str(folder), weight=1.0), ctx)
    assert not isinstance(model, PeftModel)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "peft_config")
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=0)
    assert tokenizer.chat_template  # its base's, for it has none


def test_a_merge_that_changes_the_logits_is_an_error(
    elsewhere: tuple[Path, torch.Tensor], ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(StageError, match="merged into its base, this adapter gives other logits"):
        models.load(PathSource(path=str(elsewhere[0]), weight=1.0), ctx)


def test_an_adapter_without_its_base_says_so(elsewhere: tuple[Path, torch.Tensor], base: Path, ctx: Context) -> None:
    shutil.rmtree(base)
    with pytest.raises(StageError, match="the model under this adapter is not here") as caught:
        models.load(PathSource(path=str(elsewhere[0]), weight=1.0), ctx)
    assert "adapter_config.json" in str(caught.value)
    assert "hub id, a folder or a GGUF file" in str(caught.value.hint)


def test_an_adapter_of_another_model_says_so(
    elsewhere: tuple[Path, torch.Tensor], base: Path, ctx: Context, make_model: MakeModel, tokenizer: Any
) -> None:
    shutil.rmtree(base)
    models.save(make_model(hidden_size=48), tokenizer, base)
    with pytest.raises(StageError, match="the adapter does not fit LlamaForCausalLM"):
        models.load(PathSource(path=str(elsewhere[0]), weight=1.0), ctx)


def trained_further(source: Any, ctx: Context, lora: dict[str, Any], output: str) -> tuple[PeftModel, Path]:
    """Do what a stage with `lora:` does: begin, attach, train, save."""
    begun = adapters.begin(source, lora, ctx)
    policy = attach(begun.model, lora, begun.folder, value=True)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if f".lora_B.{POLICY}." in name:
                parameter.add_(0.05)
    folder = ctx.run_dir / output / "adapter"
    adapters.save_policy(policy, begun, folder)
    manifest(folder.parent, model=source.model_dump(mode="json"))
    return policy, folder


@pytest.mark.parametrize("asked", [{}, {"r": 4}, LORA, {"target_modules": "all-linear"}])
def test_an_adapter_of_the_same_shape_is_trained_further(
    elsewhere: tuple[Path, torch.Tensor], ctx: Context, asked: dict[str, Any]
) -> None:
    source = PathSource(path=str(elsewhere[0]), weight=1.0)
    begun = adapters.begin(source, asked, ctx)
    assert begun.folder == elsewhere[0]
    policy = attach(begun.model, asked, begun.folder, value=True)
    torch.testing.assert_close(logits(policy), elsewhere[1], atol=1e-6, rtol=0)
    assert policy.peft_config[POLICY].lora_dropout == 0


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"r": 8}, "its r is 4, and 8 is asked for"),
        ({"lora_alpha": 4}, "its lora_alpha is 8, and 4 is asked for"),
        ({"target_modules": ["q_proj"]}, "it is on other modules"),
    ],
)
def test_an_adapter_of_another_shape_is_merged_first(
    elsewhere: tuple[Path, torch.Tensor], ctx: Context, asked: dict[str, Any], reason: str
) -> None:
    source = PathSource(path=str(elsewhere[0]), weight=1.0)
    begun = adapters.begin(source, asked, ctx)
    assert begun.folder is None
    policy = attach(begun.model, asked, None, value=False)
    torch.testing.assert_close(logits(policy), elsewhere[1], atol=1e-5, rtol=0)
    assert AdapterReference(policy).adapter is None  # the merged model with adapters off
    assert any(reason in event.get("text", "") for event in ctx.events)  # type: ignore[attr-defined]


def test_the_reference_of_an_adapter_is_that_adapter_not_the_bare_base(
    elsewhere: tuple[Path, torch.Tensor], ctx: Context
) -> None:
    begun = adapters.begin(PathSource(path=str(elsewhere[0]), weight=1.0), {}, ctx)
    policy = attach(begun.model, {}, begun.folder, value=False)
    reference = AdapterReference(policy)
    model = PolicyValue(policy, zero_head(32), temperature=1.0)
    sequences = joined([[5, 6], [7]], [[8, 9, 10], [11, 12]], pad_id=0)
    ids = (sequences.ids, sequences.prompt_lengths, sequences.lengths)
    as_it_came = reference(model, sequences)
    assert torch.equal(model(*ids)[0], as_it_came)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert not any(f".{REFERENCE}." in name for name in trained)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name in trained:
                parameter.add_(0.1)
    assert torch.equal(reference(model, sequences), as_it_came)
    assert reference.is_unchanged
    merged, _ = models.load(PathSource(path=str(elsewhere[0]), weight=1.0), ctx)
    torch.testing.assert_close(model.logps_of(merged, sequences), as_it_came, atol=1e-5, rtol=0)
    with torch.no_grad():
        next(p for n, p in policy.named_parameters() if f".{REFERENCE}." in n).add_(1)
    assert not reference.is_unchanged


def test_a_line_of_adapters_finds_its_base(base: Path, ctx: Context, tmp_path: Path) -> None:
    """A base; an adapter on it; the same trained further; that merged, with another adapter on top."""
    (tmp_path / "chat").mkdir()
    shutil.copytree(base, tmp_path / "chat" / "model")
    manifest(tmp_path / "chat", model={"stage": "none"})
    first, one = trained_further(StageSource(stage="chat", weight=1.0), ctx, {"r": 4}, "first")
    second, two = trained_further(StageSource(stage="first", weight=1.0), ctx, {}, "second")
    third, three = trained_further(StageSource(stage="second", weight=1.0), ctx, {"r": 2}, "third")
    named = [read_json(folder / "adapter_config.json")["base_model_name_or_path"] for folder in (one, two, three)]
    assert named == ["chat", "chat", "second+adapter"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("chat", "first", "second", "third"):
        (tmp_path / name).rename(moved / name)
    for policy, name in ((first, "first"), (second, "second"), (third, "third")):
        loaded, tokenizer = models.load(PathSource(path=str(moved / name / "adapter"), weight=1.0), ctx)
        torch.testing.assert_close(logits(loaded), logits(policy), atol=1e-5, rtol=0)
        assert tokenizer.chat_template
    assert str(tmp_path) not in "".join(file.read_text() for file in moved.rglob("adapter/*.json"))


def test_an_adapter_without_its_edge_says_so(base: Path, ctx: Context, tmp_path: Path) -> None:
    (tmp_path / "chat").mkdir()
    shutil.copytree(base, tmp_path / "chat" / "model")
    manifest(tmp_path / "chat", model={"stage": "none"})
    trained_further(StageSource(stage="chat", weight=1.0), ctx, {}, "first")
    shutil.copytree(tmp_path / "chat", tmp_path / "other")
    manifest(tmp_path / "first", model={"stage": "other"})
    with pytest.raises(StageError, match="the adapter was made on chat, which is not among the inputs of its stage"):
        models.load(StageSource(stage="first", weight=1.0), ctx)


def test_a_pad_token_that_was_added_is_there_again(ctx: Context, tmp_path: Path) -> None:
    """The base has no row for it."""
    words = {"<|end|>": 0} | {f"w{number}": number for number in range(1, 40)}
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<|end|>")), eos_token="<|end|>"
    )
    models.save(models.build("llama", SMALL, tokenizer=bare, context=32), bare, tmp_path / "chat" / "model")
    manifest(tmp_path / "chat", model={"stage": "none"})
    source = StageSource(stage="chat", weight=1.0)
    begun = adapters.begin(source, {}, ctx)
    models.mend_pad(begun.model, begun.tokenizer, ctx)
    policy = stir(attach(begun.model, {}, None, value=False))
    adapters.save_policy(policy, begun, tmp_path / "ppo" / "adapter")
    manifest(tmp_path / "ppo", model=source.model_dump(mode="json"))
    loaded, tokenizer = models.load(StageSource(stage="ppo", weight=1.0), ctx)
    assert loaded.get_input_embeddings().num_embeddings == len(tokenizer) == 41
    assert tokenizer.pad_token_id == loaded.generation_config.pad_token_id == 40
    ids = torch.arange(41)[None]
    torch.testing.assert_close(loaded.eval()(ids).logits, policy.eval()(ids).logits, atol=1e-5, rtol=0)


FROM_THE_HUB = """
import sys
from pathlib import Path
import torch
from llmpipe.settings import HubSource
from llmpipe.training import models
from tests.stages.tiny import context_for
source = HubSource.model_validate({"hub": "someone/adapter", "revision": "a" * 40})
model, tokenizer = models.load(source, context_for(Path(sys.argv[1])))
torch.save((model.eval()(input_ids=torch.arange(5, 25)[None]).logits.detach(), tokenizer.chat_template), sys.argv[2])
"""


def test_an_adapter_of_the_hub_is_read_with_its_base(
    elsewhere: tuple[Path, torch.Tensor], base: Path, tmp_path: Path
) -> None:
    """From the hub's local cache, without a network."""
    folder, wanted = elsewhere
    config = read_json(folder / "adapter_config.json")
    write_json(
        folder / "adapter_config.json", config | {"base_model_name_or_path": "someone/base", "revision": "b" * 40}
    )
    for name, commit, files in (("adapter", "a" * 40, folder), ("base", "b" * 40, base)):
        shutil.copytree(files, tmp_path / "hub" / f"models--someone--{name}" / "snapshots" / commit)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    made = tmp_path / "made.pt"
    subprocess.run([sys.executable, "-c", FROM_THE_HUB, str(tmp_path), str(made)], check=True, env=environment)
    found, template = torch.load(made)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert template


RECIPE = """
name: tiny
stages:
  base:
    kind: pretrain
    tokenizer: {path: TOKENIZER}
    data: {builtin: storyworld, rows: 60}
    model: {arch: llama, config: SHAPE}
    context: 64
    trainer: {max_steps: 3, per_device_train_batch_size: 4}
  ppo: {kind: rlhf-ppo, model: base, lora: {r: 4}, PPO}
  more: {kind: rlhf-ppo, model: ppo, lora: {}, PPO}
  tuned: {kind: sft, model: more, data: {builtin: storyworld, rows: 60}, too_long: truncate, trainer: {max_steps: 2}}
  scores: {kind: eval, models: [base, ppo, more, tuned], suites: [perplexity]}
"""
PPO = """
    reward: {function: "reward.py:length"}, data: {path: prompts.jsonl}, chat: false, rollouts: 2, keep: last,
    value_warmup_rollouts: 0, rollout: {samples: 8, max_new_tokens: 6}, trainer: {learning_rate: 1e-3}
"""


def test_a_recipe_makes_an_adapter_and_measures_it(
    tmp_path: Path, ctx: Context, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    (tmp_path / "reward.py").write_text("def length(prompts, answers):\n    return [float(len(a)) for a in answers]\n")
    rows = [{"prompt": f"Tell me about number {number}"} for number in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = "{num_hidden_layers: 1, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}"
    text = RECIPE.replace("PPO", PPO).replace("TOKENIZER", str(tmp_path / "tok")).replace("SHAPE", shape)
    run = run_recipe(tmp_path, text)
    made = read_manifest(run / "ppo")
    assert made is not None and "adapter/adapter_model.safetensors" in made.outputs
    assert not (run / "ppo" / "model").exists()
    assert {gate.name for gate in made.gates} >= {"reference-unchanged", "base-unchanged", "adapter-merges"}
    bases = [
        read_json(run / name / "adapter" / "adapter_config.json")["base_model_name_or_path"] for name in ("ppo", "more")
    ]
    assert bases == ["base", "base"]
    assert str(tmp_path) not in (run / "ppo" / "adapter" / "adapter_config.json").read_text()
    scores = read_json(run / "scores" / "scores.json")["models"]
    assert len({round(entry["perplexity"], 6) for entry in scores.values()}) == 4  # each was read with its adapter
    plain = AutoModelForCausalLM.from_pretrained(run / "base" / "model")
    adapted = PeftModel.from_pretrained(plain, run / "more" / "adapter")  # peft alone can read it, too
    merged, _ = models.load(PathSource.model_validate({"path": str(run / "more" / "adapter")}), ctx)
    torch.testing.assert_close(logits(adapted), logits(merged), atol=1e-5, rtol=0)
