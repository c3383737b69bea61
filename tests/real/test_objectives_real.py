"""Masked and denoising models on Wikipedia text, and an encoder–decoder that makes sentences of given words."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from llmpipe.training import denoising, masked, objectives
from llmpipe.training.packing import IGNORED
from tests.real.shared import needs_shared, real
from tests.stages.tiny import context_for, run_stage

CONTEXT = 64
TRAINER = {"max_steps": 150, "per_device_train_batch_size": 16, "warmup_steps": 15, "eval_steps": 150}


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of Wikipedia's words."""
    ctx = context_for(tmp_path_factory.mktemp("tok"))
    text = {"path": str(real("pretrain", "wikitext2.valid.txt"))}
    run_stage("tokenizer", {"data": text, "algorithm": "wordpiece", "vocab_size": 1024}, ctx)
    return ctx.dir / "tokenizer"


def entropy(tokens: list[int]) -> float:
    """Return the nats that the frequencies alone of these tokens leave to guess."""
    counts = Counter(tokens)
    return -sum(count / len(tokens) * math.log(count / len(tokens)) for count in counts.values())


@needs_shared
@pytest.mark.parametrize(
    ("objective", "loads"), [("masked", AutoModelForMaskedLM), ("denoising", AutoModelForSeq2SeqLM)]
)
def test_more_is_guessed_than_frequencies_tell(objective: str, loads: Any, tok: Path, tmp_path: Path) -> None:
    ctx = context_for(tmp_path)
    settings: dict[str, Any] = {
        "objective": objective, "model": {"size": "500k"}, "context": CONTEXT, "tokenizer": {"path": str(tok)},
        "data": {"path": str(real("pretrain", "wikitext2.valid.txt"))}, "held_out": {"max_tokens": 10_000},
        "trainer": TRAINER,
    }  # fmt: skip
    made = run_stage("pretrain", settings, ctx)
    model, tokenizer = loads.from_pretrained(ctx.dir / "model"), AutoTokenizer.from_pretrained(ctx.dir / "model")
    options: dict[str, Any] = {"block": CONTEXT, "seed": 0, "packing": True}
    rows: Any = {
        "masked": lambda path: masked.MaskedRows(path, tokenizer, whole_word=False, **options),
        "denoising": lambda path: denoising.DenoisingRows(path, model, tokenizer, **options),
    }[objective]
    labels = rows(ctx.dir / "train.tokens").__getitems__(range(1500))["labels"]
    assert made.metrics["held_out_loss"] < entropy(labels[labels != IGNORED].tolist())

    batch = rows(ctx.dir / "held_out.tokens").__getitems__(range(100))
    ready = objectives.READY[objective](model.eval(), batch)
    labels = ready.pop("labels")
    words = (labels != IGNORED) & ~torch.isin(labels, torch.tensor(tokenizer.all_special_ids))
    with torch.no_grad():
        right = (model(**ready).logits.argmax(-1) == labels)[words].float().mean()
    likeliest = Counter(labels[words].tolist()).most_common(1)[0][1] / int(words.sum())
    assert right > 1.2 * likeliest, "always the commonest word is what chance would say"


@needs_shared
def test_words_are_put_together(tok: Path, tmp_path: Path) -> None:
    text = {"path": str(real("pretrain", "wikitext2.valid.txt"))}
    model = {"arch": "t5", "config": {"num_layers": 2, "d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4}}
    base = {"objective": "denoising", "model": model, "context": 96, "tokenizer": {"path": str(tok)}, "data": text}
    ctx = context_for(tmp_path / "base")
    run_stage("pretrain", base | {"trainer": {"max_steps": 20}, "held_out": {"share": 0}}, ctx)
    chat = {"model": {"path": str(ctx.dir / "model")}, "held_out": {"share": 0.2}}
    chat |= {"data": {"path": str(real("seq2seq", "common_gen_Put_together.jsonl"))}}
    chat |= {"trainer": {"learning_rate": 3e-3, "max_steps": 60, "per_device_train_batch_size": 4}}
    made = run_stage("sft", chat, context_for(tmp_path / "chat"))
    assert made.metrics["held_out_loss"] < made.metrics["held_out_loss_before"] - 1
