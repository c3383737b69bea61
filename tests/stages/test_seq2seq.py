"""Encoder–decoders learn answers: what the encoder reads, what the decoder says, alone and packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpipe.data.formats import Conversation
from llmpipe.errors import DataError, StageError
from llmpipe.training import denoising, models, objectives, seq2seq
from llmpipe.training.packing import IGNORED
from tests.stages.tiny import context_for, gates_of, passed, run_recipe, run_stage, same

T5 = {"num_layers": 2, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2}


@pytest.fixture
def folder(tokenizer: Any, ctx: Any, tmp_path: Path) -> Path:
    """A small T5 as pretrain leaves it."""
    objectives.mend_special_tokens(tokenizer, "denoising", "t5", ctx)
    torch.manual_seed(0)
    model = models.build("t5", T5, tokenizer=tokenizer, context=96, kind="seq2seq-lm")
    models.save(model, tokenizer, tmp_path / "m")
    return tmp_path / "m"


def turns(*words: str) -> Conversation:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": word, "train": n % 2 == 1} for n, word in enumerate(words)]
    return Conversation(messages)  # type: ignore[arg-type]


def loaded(folder: Path, ctx: Any) -> Any:
    from llmpipe.settings import PathSource

    return models.load(PathSource(path=str(folder), weight=1.0), ctx, kinds=("seq2seq-lm",))


def test_every_answer_is_said_from_what_came_before(folder, ctx) -> None:
    model, tokenizer = loaded(folder, ctx)
    pairs = seq2seq.encode(turns("Hi", "Hello", "Bye", "So long"), model, tokenizer)
    assert [tokenizer.decode(pair.target) for pair in pairs] == ["Hello<|end|>", "So long<|end|>"]
    asked = "<|bos|><|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>Bye<|end|><|assistant|>"
    assert tokenizer.decode(pairs[1].source) == asked
    with pytest.raises(DataError, match="this row is a plain text"):
        seq2seq.encode(Conversation([], text="Once"), model, tokenizer)


def test_packed_answers_cost_what_they_cost_alone(folder, ctx) -> None:
    model, tokenizer = loaded(folder, ctx)
    pairs = [seq2seq.encode(turns(word, word * 2), model, tokenizer)[0] for word in ("duck", "a shoe", "and a kite")]

    def nats(groups: list[list[int]], packed: bool) -> float:
        batch = seq2seq.PairRows(pairs, groups, model, packed=packed).__getitems__(range(len(groups)))
        inputs = denoising.ready(model.eval(), batch)
        labels = inputs.pop("labels")
        with torch.no_grad():
            return float(objectives.mean_nats(model(**inputs), labels)) * int((labels != IGNORED).sum())

    alone = nats([[0], [1], [2]], packed=False)
    assert nats([[0, 1, 2]], packed=True) == pytest.approx(alone, abs=1e-3)
    assert nats([[2, 0], [1]], packed=True) == pytest.approx(alone, abs=1e-3)


def test_sft_teaches_an_encoder_decoder_and_eval_asks_it(folder, tmp_path) -> None:
    rows = [
        {"prompt": f"Say {word} {count}.", "completion": f"{word} {count}"}
        for word in ("duck", "shoe")
        for count in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"model": {"path": str(folder)}, "data": {"path": str(tmp_path / "pairs.jsonl")}}
    trainer = {"max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    ctx = context_for(tmp_path / "a")
    made = run_stage("sft", settings | {"trainer": trainer}, ctx)
    assert made.metrics["held_out_loss"] < made.metrics["held_out_loss_before"] / 2
    assert made.metrics["held_out_perplexity"] == pytest.approx(
        torch.tensor(made.metrics["held_out_loss"]).exp().item()
    )
    of_stage = gates_of("sft", "packed-documents-apart", "tied-embeddings", "checkpoint-replays")
    assert passed(made.gates) == of_stage

    with pytest.raises(StageError) as error:
        run_stage("sft", settings | {"lora": {}}, context_for(tmp_path / "b"))
    assert "t5 is an encoder-decoder; a causal model is needed" in str(error.value)

    model = {"path": str(ctx.dir / "model")}
    asked = {
        "models": [model],
        "data": {"builtin": "storyworld", "rows": 20},
        "prompts": ["Say duck 4.", "A [MASK] went"],
    }
    scores = run_stage("eval", asked | {"max_new_tokens": 8}, context_for(tmp_path / "c"))
    assert scores.metrics["model.denoising_loss"] > 0 and scores.metrics["model.hidden_tokens"] > 100
    told = json.loads((tmp_path / "c" / "x" / "scores.json").read_text(encoding="utf-8"))["models"]["model"]["samples"]
    assert told[0] and all("<|" not in text and "<extra" not in text for text in told)


def test_eval_fills_the_gaps_of_a_masked_model(tokenizer, ctx, tmp_path) -> None:
    objectives.mend_special_tokens(tokenizer, "masked", "bert", ctx)
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = models.build("bert", shape, tokenizer=tokenizer, context=64, kind="masked-lm")
    models.save(model, tokenizer, tmp_path / "m")
    text = {"models": [{"path": str(tmp_path / "m")}], "data": {"builtin": "storyworld", "rows": 20}}
    asked = text | {"prompts": ["A [MASK] went home", "A duck"]}
    found = [run_stage("eval", asked, context_for(tmp_path / name)).metrics for name in ("a", "b")]
    assert found[0] == found[1], "the same tokens are hidden each time"
    assert found[0]["m.pseudo_perplexity"] == pytest.approx(len(tokenizer), rel=0.3)  # it knows nothing yet
    told = json.loads((tmp_path / "a" / "x" / "scores.json").read_text(encoding="utf-8"))["models"]["m"]["samples"]
    assert told[0].startswith("A") and told[0].endswith(" went home") and len(told[1]) >= len("A duck")
    with pytest.raises(StageError, match="a masked model tells none"):
        run_stage("eval", text | {"suites": ["storyworld"]}, context_for(tmp_path / "c"))


def test_models_of_all_kinds_leave_their_run(tmp_path) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    from llmpipe.export import export

    shape = "{num_hidden_layers: 1, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}"
    base = "data: {builtin: storyworld, rows: 30}, context: 64, trainer: {max_steps: 1}"
    run = run_recipe(
        tmp_path,
        "name: x\nstages:\n  tok: {kind: tokenizer, data: {builtin: storyworld, rows: 30}, vocab_size: 300}\n"
        f"  bert: {{kind: pretrain, objective: masked, model: {{arch: bert, config: {shape}}}, {base}}}\n"
        f"  t5: {{kind: pretrain, objective: denoising, model: {{arch: t5, config: {json.dumps(T5)}}}, {base}}}\n",
    )
    for name, loads in (("bert", AutoModelForMaskedLM), ("t5", AutoModelForSeq2SeqLM)):
        export(run, name, tmp_path / name, force=False, gguf=None)
        model = loads.from_pretrained(tmp_path / name)
        assert same(run / name / "model", tmp_path / name) and model.num_parameters() > 1000
        assert f"{loads.__name__}.from_pretrained" in (tmp_path / name / "README.md").read_text(encoding="utf-8")
        with pytest.raises(StageError, match=f"--gguf writes Llama-type models, and this one is of the type {name}"):
            export(run, name, tmp_path / "g", force=False, gguf="F16")


def test_options_that_trl_alone_would_read_are_refused(folder, ctx) -> None:
    settings = {"model": {"path": str(folder)}, "data": {"builtin": "storyworld", "rows": 9}}
    with pytest.raises(StageError) as error:
        run_stage("sft", settings | {"trainer": {"max_steps": 1, "loss_type": "dft"}}, ctx)
    assert str(error.value) == "trainer.loss_type is an option of TRL's, which does not train encoder-decoders"
    assert error.value.hint == "leave it out"
