"""GGUF files as models to begin from: unpacked once, as transformers reads them, with a tokenizer that fits."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from llmpipe import pipeline, runner
from llmpipe.artifact import Input, read_json, read_manifest, sha256_of, write_json
from llmpipe.checkpoints import is_complete
from llmpipe.context import Context
from llmpipe.errors import StageError
from llmpipe.export import export
from llmpipe.settings import GgufSource, PathSource, StageSource
from llmpipe.training import bases, gguf, models
from tests.stages.tiny import context_for, run_recipe

IDS = torch.arange(5, 55)[None]
MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def file(tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny model in Q8_0, beside the tokenizer of another one."""
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "tiny.gguf"
    gguf.write(make_model(), tokenizer, path, number="Q8_0", name="tiny")
    (path.parent / "tokenizer.json").write_text('{"of": "another model"}', encoding="utf-8")
    return path


def source(file: Path) -> GgufSource:
    return GgufSource(gguf=str(file))


def rewritten(file: Path, **changed: Any) -> Path:
    """Return a copy of a file with other metadata; None leaves a key out."""
    reader = GGUFReader(file)
    copy = file.with_name("changed.gguf")
    writer = GGUFWriter(copy, changed.get("architecture", "llama"))
    for name, found in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changed:
            continue
        kind, *inner = found.types
        writer.add_key_value(name, found.contents(), kind, inner[0] if inner else None)
    for name, number in changed.items():
        if isinstance(number, int):
            writer.add_uint32(name, number)
        elif name != "architecture" and number is not None:
            writer.add_string(name, number)
    for tensor in reader.tensors:
        if tensor.name != changed.get("tensor"):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_the_folder_is_what_transformers_reads(file: Path, ctx: Context, tokenizer: PreTrainedTokenizerFast) -> None:
    model, found = models.load(source(file), ctx)
    plain = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    assert torch.equal(logits(model), logits(plain))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert len(found) == model.get_input_embeddings().num_embeddings == 300
    for text in (*gguf.TEXTS, "<|user|>a<|end|>", "<|endoftext|>"):
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        wanted = getattr(tokenizer, name)
        assert getattr(found, name) == getattr(model.config, name) == getattr(model.generation_config, name) == wanted
    assert found.chat_template == gguf.without_generation(str(tokenizer.chat_template))
    folder = ctx.run_dir / ".bases" / f"tiny-{sha256_of(file)[:12]}"
    assert ctx.folder_of(source(file)) == str(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert "quantization_config" not in read_json(folder / "config.json")
    assert not any(str(file.parent) in path.read_text(errors="ignore") for path in folder.iterdir())
    said = [event["text"] for event in ctx.events if event["event"] == "say"]  # type: ignore[attr-defined]
    assert said == ["tiny.gguf is unpacked, once for this run: 0.04 M parameters in fp32, 0 MB"]


def test_it_is_unpacked_once(file: Path, ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bases.unpacked(source(file), ctx)
    monkeypatch.setattr(bases, "_read", lambda *_: pytest.fail("it was read again"))
    assert bases.unpacked(source(file), ctx) == folder
    models.load_tokenizer(source(file), ctx)
    other = replace(ctx, step=ctx.step.model_copy(update={"name": "y", "inputs": [recorded(file)]}))
    file.unlink()
    assert bases.unpacked(source(file), other) == folder, "the folder is enough"
    with pytest.raises(StageError) as failure:
        bases.unpacked(source(file), ctx)
    assert str(failure.value) == f"{file}: is no longer there"


def recorded(file: Path) -> Input:
    found = {"gguf": str(file), "weight": 1.0}
    return Input(field="model", source=found, identity="i", files={str(file): sha256_of(file)})


def test_a_folder_that_is_not_whole_is_made_again(file: Path, ctx: Context) -> None:
    folder = bases.unpacked(source(file), ctx)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    folder.with_name(f"{folder.name}.tmp").mkdir()
    bases.unpacked(source(file), ctx)
    assert is_complete(folder) and (folder / "model.safetensors").read_bytes() == weights
    assert list(folder.parent.iterdir()) == [folder]


def test_a_file_that_changes_meanwhile_leaves_nothing(file: Path, ctx: Context) -> None:
    ctx.step.inputs.append(recorded(file))
    with file.open("ab") as opened:
        opened.write(b"\0")
    with pytest.raises(StageError, match=r"tiny\.gguf: changed while the stage was reading it"):
        bases.unpacked(source(file), ctx)
    assert list((ctx.run_dir / ".bases").iterdir()) == []


def test_other_processes_wait_for_the_first(file: Path, ctx: Context) -> None:
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(bases.unpacked(source(file), replace(ctx, rank=1))))
    waiting.start()
    waiting.join(timeout=0.3)
    assert waiting.is_alive() and found == []
    folder = bases.unpacked(source(file), ctx)
    waiting.join(timeout=10)
    assert found == [folder]


def test_digits_are_cut_as_the_file_says(file: Path, ctx: Context) -> None:
    """Two spaces before a number: GPT-2 keeps one of them for the number, a way that cuts each digit off does not."""
    tokenizers = []
    for way in ("gpt-2", "smollm", "unheard-of"):
        copy = rewritten(file, **{"tokenizer.ggml.pre": way})
        tokenizers.append(models.load_tokenizer(source(copy), ctx).backend_tokenizer.pre_tokenizer)
    cut = [[piece for piece, _ in one.pre_tokenize_str("a  12")] for one in tokenizers]
    assert cut == [["a", "Ġ", "Ġ12"], ["a", "ĠĠ", "1", "2"], ["a", "Ġ", "Ġ12"]]
    said = [event["text"] for event in ctx.events if "cuts words" in event.get("text", "")]  # type: ignore[attr-defined]
    assert said == ["changed.gguf cuts words in the way unheard-of, and here they are cut as GPT-2 does"]


def test_all_ends_of_a_turn_are_kept(file: Path, ctx: Context) -> None:
    copy = rewritten(file, **{"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2})
    assert models.load(source(copy), ctx)[0].generation_config.eos_token_id == [2, 5]


@pytest.mark.parametrize("key", ["added_tokens", "pre_tokenizer"])
def test_a_tokenizer_that_changes_when_it_is_saved_is_refused(
    key: str, file: Path, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a token that the model has no row for, or with words cut in another way."""

    mend = bases._mend_tokenizer

    def spoil(folder: Path, *rest: Any) -> None:
        if key == "pre_tokenizer":
            mend(folder, *rest)
            whole = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
            write_json(folder / "tokenizer.json", read_json(folder / "tokenizer.json") | {key: whole})

    monkeypatch.setattr(bases, "_mend_tokenizer", spoil)
    with pytest.raises(
        StageError, match=r"tiny\.gguf: transformers reads its tokenizer in one way, and in another once"
    ):
        bases.unpacked(source(file), ctx)


BROKEN = {
    "an architecture": (
        {"architecture": "whisper"},
        "transformers cannot read it: GGUF model with architecture whisper",
    ),
    "weights": ({"tensor": "blk.1.attn_q.weight"}, "has no weights for model.layers.1.self_attn.q_proj.weight"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_is_said_in_one_line(what: str, file: Path, ctx: Context) -> None:
    changed, message = BROKEN[what]
    copy = rewritten(file, **changed)
    with pytest.raises(StageError) as failure:
        models.load(source(copy), ctx)
    assert str(failure.value).startswith(f"{copy}: {message}") and "\n" not in str(failure.value)
    assert failure.value.hint == "the same model as a Hugging Face folder works as {path: FOLDER}"
    assert list((ctx.run_dir / ".bases").iterdir()) == []


def test_a_file_that_was_cut_off_is_said_in_one_line(file: Path, ctx: Context) -> None:
    for size in (200, file.stat().st_size // 2):
        copy = file.with_name(f"{size}.gguf")
        copy.write_bytes(file.read_bytes()[:size])
        with pytest.raises(StageError, match=rf"{size}\.gguf: transformers cannot read it: \S+"):
            models.load(source(copy), ctx)


RECIPE = """
name: tiny
stages:
  chat:
    kind: sft
    model: {gguf: files/tiny.gguf}
    data: {builtin: storyworld, rows: 60}
    too_long: truncate
    trainer: {max_steps: 2, learning_rate: 1e-3}
  tuned:
    kind: lora
    model: {gguf: files/tiny.gguf}
    data: {builtin: storyworld, rows: 60}
    too_long: truncate
    trainer: {max_steps: 2, learning_rate: 1e-2}
  again:
    kind: sft
    model: tuned
    data: {builtin: storyworld, rows: 60}
    too_long: truncate
    trainer: {max_steps: 2, learning_rate: 1e-2}
  scores: {kind: eval, models: [{gguf: files/tiny.gguf}, chat, tuned, again], data: {path: text.txt}}
"""


def test_a_recipe_begins_from_one(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time there was a duck. " * 20, encoding="utf-8")
    reads: list[Path] = []
    read = bases._read
    monkeypatch.setattr(bases, "_read", lambda file, empty: reads.append(file) or read(file, empty))
    run = run_recipe(tmp_path, RECIPE)
    assert reads == [file], "once for all stages"
    (entry,) = (entry for entry in read_manifest(run / "chat").inputs if entry.field == "model")  # type: ignore[union-attr]
    assert entry.files == {str(file): sha256_of(file)}
    made = AutoTokenizer.from_pretrained(run / "chat" / "model")
    assert "<|assistant|>" in made.chat_template
    named = read_json(run / "tuned" / "adapter" / "adapter_config.json")["base_model_name_or_path"]
    assert named == "tiny.gguf"
    scores = read_json(run / "scores" / "scores.json")["models"]
    assert list(scores) == ["tiny.gguf", "chat", "tuned", "again"]
    assert len({round(entry["perplexity"], 6) for entry in scores.values()}) == 4
    assert export(run, "tuned", tmp_path / "out", force=False, gguf="F32").merged
    capsys.readouterr()
    merged, _ = models.load(StageSource(stage="tuned"), context_for(run))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(merged))
    assert f"| tuned | model | tiny.gguf | {sha256_of(file)[:12]} |" in (tmp_path / "out" / "README.md").read_text()
    file.rename(file.with_name("moved.gguf"))
    recipe = (tmp_path / "tiny.yaml").read_text().replace("tiny.gguf", "moved.gguf")
    (tmp_path / "tiny.yaml").write_text(recipe, encoding="utf-8")
    request = pipeline.Request(options=runner.Options(in_process=True), json=True)
    pipeline.run_recipe(str(tmp_path / "tiny.yaml"), run, request)
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [step["action"] for step in steps] == ["skip"] * 4 and reads == [file]
    again, _ = models.load(StageSource(stage="tuned"), context_for(run))
    assert torch.equal(logits(again), logits(merged)), "the folder is found by what the stage has read"


def test_an_adapter_from_elsewhere_finds_its_file(file: Path, tmp_path: Path) -> None:
    text = "\n".join(RECIPE.splitlines()[:3] + RECIPE.splitlines()[9:15])
    run = run_recipe(tmp_path, text)
    merged, _ = models.load(StageSource(stage="tuned"), context_for(run))
    shutil.copytree(run / "tuned" / "adapter", file.parent / "copy")
    shutil.copy(file, file.parent / "copy" / file.name)
    found, _ = models.load(PathSource(path=str(file.parent / "copy")), context_for(tmp_path / "other"))
    assert torch.equal(logits(found), logits(merged))
