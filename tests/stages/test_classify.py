"""The classify stage on tiny models of several families: what it learns, what it writes, what it says of bad input."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from llmpipe.errors import StageError, StoppedError
from llmpipe.training import class_trainer
from llmpipe.training.classifier import Encoded
from tests.stages.conftest import SMALL
from tests.stages.tiny import context_for, gates_of, passed, run_stage, same, stop_after

LETTERS = {"good": "a", "bad": "b", "odd": "c"}
TRAINER = {"per_device_train_batch_size": 16, "max_steps": 6, "learning_rate": 3e-3, "logging_steps": 1}
LEARNS = TRAINER | {"max_steps": 40, "learning_rate": 1e-2}
SMALL_BERT = {**SMALL, "max_position_embeddings": 64, "vocab_size": 300, "pad_token_id": 0, "initializer_range": 0.1}


def write_rows(folder: Path, rows: list[tuple[str, Any]]) -> dict[str, Any]:
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("tweet", "class"), *rows])
    return {"path": str(folder / "texts.csv"), "columns": {"text": "tweet", "label": "class"}}


def rows_of(count: int, classes: tuple[str, ...] = ("good", "bad", "odd")) -> list[tuple[str, str]]:
    """Texts whose first letter tells their class."""
    names = [classes[n % len(classes)] for n in range(count)]
    return [(f"{LETTERS[name]} {n}", name) for n, name in enumerate(names)]


def model_of(arch: str, folder: Path, tokenizer: Any, make_model: Any) -> dict[str, str]:
    torch.manual_seed(0)
    if arch == "bert":
        model = BertForMaskedLM(BertConfig(**SMALL_BERT))
    elif arch == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=300, n_positions=64))
    else:
        model = make_model(arch)
    model.save_pretrained(folder / arch)
    tokenizer.save_pretrained(folder / arch)
    return {"path": str(folder / arch)}


@pytest.fixture
def settings(tokenizer: Any, make_model: Any, tmp_path: Path) -> dict[str, Any]:
    model = model_of("bert", tmp_path, tokenizer, make_model)
    data = write_rows(tmp_path, rows_of(200))
    return {"model": model, "data": data, "context": 32, "held_out": {"share": 0.2}, "trainer": TRAINER}


@pytest.mark.parametrize("arch", ["bert", "llama", "gpt2"])
def test_it_learns_classes_and_what_is_saved_is_read_by_transformers(
    arch, settings, tokenizer, make_model, tmp_path
) -> None:
    settings |= {
        "model": model_of(arch, tmp_path, tokenizer, make_model),
        "trainer": TRAINER | {"max_steps": 60, "learning_rate": 3e-3},
    }
    ctx = context_for(tmp_path)
    result = run_stage("classify", settings, ctx)
    metrics = result.metrics
    assert metrics["accuracy"] >= 0.95
    assert metrics["macro_f1"] >= 0.95
    assert metrics["accuracy_before"] < 0.5
    assert metrics["rows"] + metrics["held_out_rows"] == 200
    assert sum(own["rows"] for own in metrics["by_class"].values()) == metrics["held_out_rows"] > 20
    assert list(metrics["by_class"]) == ["bad", "good", "odd"]
    assert passed(result.gates) == gates_of("classify", "checkpoint-replays")
    tell = pipeline("text-classification", str(tmp_path / "x" / "model"))
    found = tell(["b 1241", "a 977", "c 1260"])
    assert [one["label"] for one in found] == ["bad", "good", "odd"]
    assert "held_out_perplexity" not in metrics
    counts = ", ".join(f"{name} ({metrics['rows_by_class'][name]})" for name in ("bad", "good", "odd"))
    assert ctx.events[1] == {"event": "say", "text": f"3 classes: {counts}"}
    assert ctx.events[-1]["text"].startswith(
        f"right about {metrics['accuracy']:.1%} of {metrics['held_out_rows']} held-out texts, macro-F1 "
    )


@pytest.mark.parametrize(
    "model",
    [
        {"size": "100k"},
        {"arch": "roberta", "config": SMALL},
        {"arch": "llama", "config": SMALL},
    ],
    ids=["size", "roberta", "llama"],
)
def test_from_nothing(model, settings, tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    settings |= {"model": model, "tokenizer": {"path": str(tmp_path / "tok")}, "trainer": LEARNS}
    result = run_stage("classify", settings, context_for(tmp_path))
    assert result.metrics["held_out_loss"] < 0.9 * result.metrics["held_out_loss_before"]
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "x" / "model").config
    assert config.model_type == model.get("arch", "modernbert")
    assert getattr(config, "classifier_pooling", "mean") == "mean"


def test_the_body_is_the_model_that_it_begins_from(settings, tmp_path, tokenizer) -> None:
    settings["trainer"] = TRAINER | {"learning_rate": 0.0, "max_steps": 1}
    run_stage("classify", settings, context_for(tmp_path))
    before = load_file(tmp_path / "bert" / "model.safetensors")
    after = load_file(tmp_path / "x" / "model" / "model.safetensors")
    shared = [key for key in before if key.startswith("bert.")]
    assert len(shared) > 20
    assert all(torch.equal(before[key], after[key]) for key in shared)


def test_it_resumes_to_the_bit(settings, tmp_path) -> None:
    """In the second epoch, with dropout, weights of classes and batches that are put together anew."""
    settings["data"] = write_rows(tmp_path, rows_of(100))
    settings |= {"dropout": 0.1, "class_weights": "balanced"}
    settings["trainer"] = TRAINER | {"gradient_accumulation_steps": 2, "save_steps": 1}
    whole = run_stage("classify", settings, context_for(tmp_path / "a"))
    with pytest.raises(StoppedError):
        run_stage("classify", settings, context_for(tmp_path / "b", stop=stop_after(4, "interrupt")))
    resumed = run_stage("classify", settings, context_for(tmp_path / "b"))
    assert same(tmp_path / "a" / "x" / "model", tmp_path / "b" / "x" / "model")
    assert {**whole.metrics, "tokens_per_s": 0} == {**resumed.metrics, "tokens_per_s": 0}


def test_an_adapter_is_merged_first(settings, tokenizer, make_model, tmp_path) -> None:
    from llmpipe.training import adapters
    from llmpipe.training.ppo.shared import put

    model_of("llama", tmp_path, tokenizer, make_model)
    policy = put(make_model("llama"), {"r": 4}, None)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    adapters.save(policy, tmp_path / "adapter", base="../llama")
    settings |= {"model": {"path": str(tmp_path / "adapter")}}
    settings["trainer"] = TRAINER | {"learning_rate": 0.0, "max_steps": 1}
    run_stage("classify", settings, context_for(tmp_path))
    merged = policy.merge_and_unload().state_dict()
    after = load_file(tmp_path / "x" / "model" / "model.safetensors")
    assert all(torch.allclose(merged[key], after[key], atol=1e-6) for key in after if key.startswith("model."))


def test_padding_changes_no_logit(settings, tokenizer, make_model, tmp_path) -> None:
    """A short text alone gives what it gives beside a long one, in an encoder and in a decoder."""
    for arch in ("bert", "llama"):
        source = model_of(arch, tmp_path, tokenizer, make_model)
        model = AutoModelForSequenceClassification.from_pretrained(source["path"], num_labels=3).eval()
        model.config.pad_token_id = tokenizer.pad_token_id
        rows = [Encoded([1, 20, 30], 0), Encoded([1, *range(40, 60)], 1)]
        collate = class_trainer.Collator(tokenizer.pad_token_id)
        with torch.no_grad():
            together, alone = (
                model(**{key: value for key, value in collate(some).items() if key != "labels"}).logits[0]
                for some in (rows, rows[:1])
            )
        assert torch.allclose(together, alone, atol=1e-5)


def test_weights_of_classes_make_the_rare_one_count_the_same() -> None:
    labels = [0] * 90 + [1] * 9 + [2]
    weights = class_trainer.balanced(labels, 3)
    assert sum(weights[label] for label in labels) == pytest.approx(100)
    assert [float(weights[label] * labels.count(label)) for label in range(3)] == pytest.approx([100 / 3] * 3)


def test_the_loss_does_not_depend_on_how_rows_are_split_into_passes(settings, tmp_path) -> None:
    """With weights, a mean over each pass's own weights would."""
    settings["data"] = write_rows(tmp_path, [*rows_of(90, ("good", "bad")), *rows_of(9, ("odd",))])
    settings |= {"class_weights": "balanced", "dropout": 0.0, "held_out": {"share": 0.0}}
    for name, rows, passes in (("a", 16, 1), ("b", 4, 4)):
        own = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": passes, "max_steps": 3}
        own["train_sampling_strategy"] = "sequential"
        run_stage("classify", settings | {"trainer": TRAINER | own}, context_for(tmp_path / name))
    one, two = (load_file(tmp_path / name / "x" / "model" / "model.safetensors") for name in ("a", "b"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 3e-4  # a wrong mean: 1e-2


def test_names_and_cuts(settings, tmp_path) -> None:
    rows = [(text, {"good": 2, "bad": 0, "odd": 1}[name]) for text, name in rows_of(60)]
    settings["data"] = write_rows(tmp_path, [*rows, ("very " * 80, 2)])
    settings |= {"labels": {0: "harmful", 1: "harmful", 2: "fine"}, "trainer": TRAINER | {"max_steps": 1}}
    ctx = context_for(tmp_path)
    metrics = run_stage("classify", settings, ctx).metrics
    assert list(metrics["confusion"]) == ["harmful", "fine"]
    assert metrics["cut_rows"] == 1
    said = [event.get("text") for event in ctx.events]
    assert "1 of 61 texts (2%) are longer than 32 tokens: cut off" in said
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "x" / "model")
    assert (model.config.id2label, model.config.label2id) == ({0: "harmful", 1: "fine"}, {"harmful": 0, "fine": 1})


def test_an_encoder_decoder_is_refused(settings, tokenizer, tmp_path) -> None:
    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2, vocab_size=300)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(StageError) as caught:
        run_stage("classify", settings | {"model": {"path": str(tmp_path / "t5")}}, context_for(tmp_path))
    assert str(caught.value) == f"{tmp_path / 't5'}: t5 is an encoder-decoder; one of the two is needed alone"
    assert caught.value.hint == "begin from an encoder such as BERT, or from a causal model such as a Llama or a GPT-2"


def test_a_model_without_its_weights_is_refused(settings, tokenizer, tmp_path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "bert" / "model.safetensors"
    weights = {key: value for key, value in load_file(path).items() if "layer.1" not in key}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(StageError) as caught:
        run_stage("classify", settings, context_for(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / 'bert'}: has no weights for bert.encoder.layer.1.")
