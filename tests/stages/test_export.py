"""Models that leave a run: a folder, merged, with a card whose example runs; GGUF, read back to the same logits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmpipe.artifact import read_json
from llmpipe.errors import StageError, UsageError
from llmpipe.export import export
from llmpipe.settings import StageSource
from llmpipe.training import gguf, models, reward_model
from tests.stages.tiny import context_for, run_recipe

MakeModel = Callable[..., PreTrainedModel]

IDS = torch.arange(5, 55)[None]

RECIPE = """
name: tiny
stages:
  tok: {kind: tokenizer, data: {builtin: storyworld, rows: 300}, vocab_size: 300}
  base:
    kind: pretrain
    data: {builtin: storyworld, rows: 100}
    model: {arch: llama, config: {num_hidden_layers: 2, hidden_size: 64, intermediate_size: 96, num_attention_heads: 4,
      num_key_value_heads: 2, tie_word_embeddings: true}}
    context: 64
    trainer: {max_steps: 30, per_device_train_batch_size: 8, learning_rate: 1e-2}
  chat: {kind: sft, data: {builtin: storyworld, rows: 60}, too_long: truncate, trainer: {max_steps: 3}}
  judge: {kind: reward, model: chat, data: {path: pairs.jsonl}, trainer: {max_steps: 2}}
  ppo:
    kind: rlhf-ppo
    model: chat
    lora: {r: 4}
    reward: {function: "reward.py:length"}
    data: {path: prompts.jsonl}
    rollouts: 2
    keep: last
    value_warmup_rollouts: 0
    rollout: {samples: 8, max_new_tokens: 6}
    trainer: {learning_rate: 1e-2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a model, a reward model and an adapter."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "reward.py").write_text("def length(prompts, answers):\n    return [float(len(a)) for a in answers]\n")
    prompts = [{"prompt": f"Tell me about number {number}"} for number in range(40)]
    pairs = [{**row, "chosen": f"It is good {n}.", "rejected": f"It is bad {n}."} for n, row in enumerate(prompts)]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_recipe(folder, RECIPE)


def exported(run: Path, stage: str, to: Path, capsys: pytest.CaptureFixture[str], **flags: Any) -> dict[str, Any]:
    """Export and return what `--json` says."""
    capsys.readouterr()
    said = asdict(export(run, stage, to, **{"force": False, "gguf": None, **flags}))
    assert capsys.readouterr().out == ""
    return said


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def greedy(model: PreTrainedModel, tokenizer: Any, prompt: str = "Tell me a story about a duck.") -> str:
    turns = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    made = model.generate(**ids, do_sample=False, max_new_tokens=30)
    return str(tokenizer.decode(made[0]))


def test_a_folder_needs_no_llmpipe(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(run, "chat", tmp_path / "new" / "out", capsys)
    to = tmp_path / "new" / "out"
    names = {file.name for file in to.iterdir()}
    assert names == set(said["files"]) and names >= {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
    }
    assert said["files"]["model.safetensors"] == (to / "model.safetensors").stat().st_size
    assert (said["merged"], said["gguf"], said["stage"]) == (False, None, "chat")
    old, new = (load_file(folder / "model.safetensors") for folder in (run / "chat" / "model", to))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert said["parameters"] == sum(tensor.numel() for tensor in old.values())
    ends = GenerationConfig.from_pretrained(to)
    assert (ends.eos_token_id, ends.pad_token_id) == (2, 0)
    assert [file for file in to.parent.iterdir() if file != to] == []


def test_the_example_of_a_card_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for stage in ("chat", "judge"):
        exported(run, stage, Path(stage), capsys)
        card = Path(stage, "README.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        names: dict[str, Any] = {}
        exec(code, names)
        assert type(names["model"]).__name__ == {"chat": "LlamaForCausalLM"}.get(
            stage, "LlamaForSequenceClassification"
        )
    assert str(tmp_path) not in card and str(run) not in card


def test_an_adapter_leaves_merged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(run, "ppo", tmp_path / "out", capsys)
    assert said["merged"] and "adapter_config.json" not in said["files"]
    merged, _ = models.load(StageSource(stage="ppo", weight=1.0), context_for(run))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(found), logits(merged))
    base, _ = models.load(StageSource(stage="chat", weight=1.0), context_for(run))
    assert not torch.allclose(logits(found), logits(base), atol=1e-4)


def test_a_reward_model_keeps_its_format(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(run, "judge", tmp_path / "out", capsys)
    assert read_json(tmp_path / "out" / "reward.json") == read_json(run / "judge" / "model" / "reward.json")
    (tmp_path / "moved").mkdir()
    (tmp_path / "out").rename(tmp_path / "moved" / "model")
    old = reward_model.load(StageSource(stage="judge", weight=1.0), context_for(run))
    assert torch.equal(
        old.scores([[5, 6, 7]]),
        reward_model.RewardModel(
            type(old.model).from_pretrained(tmp_path / "moved" / "model"), old.tokenizer, old.format
        ).scores([[5, 6, 7]]),
    )


def test_gguf_of_a_reward_model_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--gguf writes models that answer, and judge scores answers"):
        export(run, "judge", tmp_path / "out", force=False, gguf="F32")
    assert list(tmp_path.iterdir()) == []


def test_force_writes_over_a_model_and_keeps_the_rest(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What transformers would load beside the new weights goes."""
    to = tmp_path / "out"
    to.mkdir()
    for name in ("adapter_config.json", "model-00001-of-00002.safetensors", "model.safetensors", "notes.txt"):
        (to / name).write_text("{}", encoding="utf-8")
    exported(run, "base", to, capsys, force=True)
    assert (to / "notes.txt").read_text(encoding="utf-8") == "{}"
    assert not (to / "adapter_config.json").exists() and not (to / "model-00001-of-00002.safetensors").exists()
    plain = AutoModelForCausalLM.from_pretrained(run / "base" / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(to)), logits(plain))


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "save", full)
    with pytest.raises(StageError, match="there is no room to write"):
        export(run, "base", tmp_path / "out", force=False, gguf="F32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "bound"), [("F32", 0.0), ("F16", 1e-3), ("Q8_0", 2e-2)])
def test_gguf_of_a_trained_model_gives_its_logits(
    number: str, bound: float, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = exported(run, "chat", tmp_path / "out", capsys, gguf=number)
    assert said["gguf"]["file"] == f"gguf/out-{number}.gguf" and said["gguf"]["matrices_in_f16"] == 0
    assert f"`gguf/out-{number}.gguf`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    place = {"pretrained_model_name_or_path": tmp_path / "out" / "gguf", "gguf_file": f"out-{number}.gguf"}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(run / "chat" / "model")
    shift = float((logits(model) - logits(plain)).abs().max() / logits(plain).abs().max())
    assert shift <= bound and said["gguf"]["largest_logit_shift"] <= bound
    if number != "F32":
        assert shift > 0
        return
    tokenizers = (
        AutoTokenizer.from_pretrained(**place),
        AutoTokenizer.from_pretrained(run / "chat" / "model"),
    )
    assert greedy(model, tokenizers[0]) == greedy(plain, tokenizers[1])


SHAPES = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "shared keys": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "wide heads": {"num_attention_heads": 2, "head_dim": 32},
    "odd rows": {"hidden_size": 40, "intermediate_size": 72},
    "another rotation": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "more rows than tokens": {"vocab": 310},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_llama_comes_back(
    shape: str, tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = dict(SHAPES[shape])
    rows = config.pop("vocab", None)
    model = make_model(**config)
    if rows:
        models.grow(model, rows)
    path = tmp_path / "x.gguf"
    written = gguf.write(model, tokenizer, path, number="F32", name="x")
    assert written == gguf.Written(0.0, 0)
    found, its_tokenizer = gguf.read_back(path)
    assert torch.equal(logits(found), logits(model))
    assert found.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert found.config.max_position_embeddings == model.config.max_position_embeddings
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(its_tokenizer, name) == getattr(tokenizer, name)
    assert greedy(found, its_tokenizer) == greedy(model, tokenizer)
    tokens = GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == model.get_input_embeddings().num_embeddings, "llama.cpp counts them"
    path.unlink()
    narrow = gguf.write(model, tokenizer, path, number="Q8_0", name="x")
    assert narrow.wider == (2 * 7 + 2 if shape == "odd rows" else 0) and 0 < narrow.largest_shift < 0.02


def test_the_file_says_what_llama_cpp_reads(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    gguf.write(make_model(), tokenizer, tmp_path / "x.gguf", number="Q8_0", name="x")
    reader = GGUFReader(tmp_path / "x.gguf")
    told = {name: field.contents() for name, field in reader.fields.items()}
    assert (told["general.architecture"], told["general.file_type"]) == ("llama", 7)
    assert (told["tokenizer.ggml.model"], told["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert told["tokenizer.ggml.add_bos_token"] is True and told["tokenizer.ggml.add_eos_token"] is False
    types = dict(zip(told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"], strict=True))
    assert types["<|user|>"] == TokenType.CONTROL and types["a"] == TokenType.NORMAL
    assert "generation" not in told["tokenizer.chat_template"].replace("add_generation_prompt", "")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (
        kinds["blk.0.attn_norm.weight"] == "F32"
        and kinds["token_embd.weight"] == kinds["blk.1.attn_q.weight"] == "Q8_0"
    )


def test_rows_are_ordered_for_a_rotation_of_neighbours(make_model: MakeModel) -> None:
    """Two heads of width 4: (first half, second half) of each become pairs."""
    model = make_model(num_attention_heads=2, head_dim=4)
    weight = torch.arange(8.0)[:, None].expand(8, 3)
    ordered = gguf._as_llama_cpp("model.layers.0.self_attn.q_proj.weight", weight, model)
    assert ordered[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_marks_of_what_is_learned_are_left_out_of_a_template() -> None:
    template = "a {%- generation %} b {{ x }}{%+ endgeneration -%} c {% if add_generation_prompt %}d{% endif %}"
    assert gguf.without_generation(template) == (
        "a {%- if true %} b {{ x }}{%+ endif -%} c {% if add_generation_prompt %}d{% endif %}"
    )


REFUSED = {
    "gpt2": ("gpt2", {}, "--gguf writes Llama-type models, and this one is of the type gpt2"),
    "bias": ("llama", {"attention_bias": True, "mlp_bias": True}, "has its own attention_bias and mlp_bias"),
    "rotation": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        "this one has its own rope_type",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_reader_would_take_for_something_else_is_refused(
    name: str, tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    arch, config, message = REFUSED[name]
    if arch == "gpt2":
        model = models.build("gpt2", {"n_layer": 1, "n_embd": 32, "n_head": 2}, tokenizer=tokenizer, context=64)
    else:
        model = make_model(arch, **config)
    with pytest.raises(StageError, match=message):
        gguf.write(model, tokenizer, tmp_path / "x.gguf", number="F32", name="x")
    assert list(tmp_path.iterdir()) == []


def changed(tokenizer: PreTrainedTokenizerFast, change: Callable[[Any], None]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that is another one."""
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    change(other)
    return other


def _digits(tokenizer: Any) -> None:
    both = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(both)


def test_a_tokenizer_that_a_file_cannot_tell_of_is_refused(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(StageError, match="byte-level BPE tokenizers that cut words as GPT-2 does, and this one"):
        gguf.write(make_model(), changed(tokenizer, _digits), tmp_path / "x.gguf", number="F32", name="x")
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_comes_back_as_another_is_an_error(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Readers take a space in a token for the end of it."""
    odd = changed(tokenizer, lambda one: one.add_special_tokens({"additional_special_tokens": ["<my own>"]}))
    model = make_model()
    models.grow(model, len(odd))
    with pytest.raises(
        StageError, match=r"read back from the GGUF file, the tokenizer gives other tokens for .*<my own>"
    ):
        gguf.write(model, odd, tmp_path / "x.gguf", number="F32", name="x")


def test_numbers_that_a_narrow_file_cannot_hold_are_an_error(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(StageError, match="read back from the GGUF file, logits are not finite") as failure:
        gguf.write(model, tokenizer, tmp_path / "x.gguf", number="F16", name="x")
    assert failure.value.hint == "take a wider --gguf, such as F32"
    assert np.isfinite(gguf.write(model, tokenizer, tmp_path / "y.gguf", number="F32", name="x").largest_shift)
