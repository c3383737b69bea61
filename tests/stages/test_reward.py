"""The reward stage on tiny models: what it learns, what it leaves out, and what it says of bad input."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from llmpipe.errors import DataError, LlmpipeError, StageError, StoppedError
from llmpipe.settings import PathSource
from llmpipe.training import pairs, reward_model
from tests.stages.preferred import preference
from tests.stages.tiny import context_for, gates_of, passed, run_stage, same, stop_after

TRAINER = {"per_device_train_batch_size": 8, "max_steps": 8, "eval_steps": 4, "logging_steps": 1, "learning_rate": 1e-2}


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(folder / "pairs.jsonl")}


def rows_of(count: int, **more: Any) -> list[dict[str, Any]]:
    """Pairs that differ in one letter: the better answer is the one with an a."""
    return [{"prompt": f"Number {n}?", "chosen": f"{n} a", "rejected": f"{n} b", **more} for n in range(count)]


@pytest.fixture
def model_folder(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, str]:
    make_model(context=64).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return {"path": str(tmp_path / "m")}


@pytest.fixture
def settings(model_folder: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    data = write_rows(tmp_path, rows_of(200))
    return {"model": model_folder, "data": data, "held_out": {"share": 0.2}, "trainer": TRAINER}


def test_it_learns_which_answer_is_better_and_what_is_saved_scores_the_same(settings, tmp_path) -> None:
    ctx = context_for(tmp_path)
    settings["trainer"] = TRAINER | {"max_steps": 30}
    result = run_stage("reward", settings, ctx)
    metrics = result.metrics
    assert metrics["held_out_accuracy"] >= 0.95
    assert metrics["held_out_accuracy_before"] == 0.5
    assert metrics["train_loss_first"] == pytest.approx(math.log(2))
    assert metrics["rows"] + metrics["held_out_rows"] == 200
    assert metrics["held_out_rows"] == metrics["held_out_pairs"] > 20
    assert metrics["mean_margin"] > 0.5
    assert sum(entry["pairs"] for entry in metrics["calibration_bins"]) == metrics["held_out_pairs"]
    assert metrics["longer_wins_share"] is None  # all answers of a pair have one length
    assert metrics["boundary_share"] == 1.0
    assert not {"held_out_perplexity", "held_out_loss_before", "by_criterion"} & set(metrics)
    assert passed(result.gates) == gates_of("reward", "checkpoint-replays")
    low, high = metrics["held_out_accuracy_interval"]
    assert ctx.events[-1]["text"] == (
        f"prefers the better answer in {metrics['held_out_accuracy']:.1%} of {metrics['held_out_pairs']} "
        f"held-out pairs (95% interval {low:.1%}–{high:.1%})"
    )
    loaded = reward_model.load(PathSource(path=str(tmp_path / "x" / "model"), format=None), ctx)
    assert loaded.format.criteria == ("reward",)
    assert loaded.format.chat_template == loaded.tokenizer.chat_template
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.format.end_token_id) == "<|end|>"
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    (pair,) = pairs.encode([preference("7 a", "7 b")], loaded.tokenizer, end=2, chat=True, heads=["reward"])
    found = loaded.scores([pair.chosen, pair.rejected])
    assert found[0] > found[1]


def test_it_resumes_to_the_bit(settings, tmp_path) -> None:
    """With dropout, and batches put together anew in each epoch: from the middle of the second, and from the end."""
    rows = [row | {"chosen": row["chosen"] * (n % 5 + 1)} for n, row in enumerate(rows_of(40))]
    settings["data"] = write_rows(tmp_path, rows)
    settings |= {"dropout": 0.1, "trainer": TRAINER | {"gradient_accumulation_steps": 2, "save_steps": 1}}
    whole = run_stage("reward", settings, context_for(tmp_path / "whole"))
    assert whole.metrics["steps"] == 8
    for stop_at, how in ((4, "interrupt"), (8, "terminate")):
        with pytest.raises(StoppedError):
            run_stage("reward", settings, context_for(tmp_path / how, stop=stop_after(stop_at, how)))
        resumed = run_stage("reward", settings, context_for(tmp_path / how))
        assert same(tmp_path / "whole" / "x" / "model", tmp_path / how / "x" / "model")
        assert {**whole.metrics, "tokens_per_s": 0} == {**resumed.metrics, "tokens_per_s": 0}


def test_rewards_are_centred(settings, tmp_path) -> None:
    """The loss with the term is TRL's (see the trainer's tests); here, the setting reaches it."""
    for name, center in (("a", 0.0), ("b", 5.0), ("c", 5.0)):
        run_stage("reward", settings | {"center": center}, context_for(tmp_path / name))
    assert not same(tmp_path / "a" / "x" / "model", tmp_path / "b" / "x" / "model")
    assert same(tmp_path / "b" / "x" / "model", tmp_path / "c" / "x" / "model")


def test_padding_that_is_the_end_gets_a_token_of_its_own(settings, tmp_path, tokenizer) -> None:
    mixed = copy.deepcopy(tokenizer)
    mixed.pad_token = mixed.eos_token
    mixed.save_pretrained(tmp_path / "m")
    ctx = context_for(tmp_path)
    result = run_stage("reward", settings, ctx)
    assert ctx.events[0]["text"].startswith("pad token was the end token; it is now ")
    assert all(gate.passed for gate in result.gates)


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(settings, tmp_path) -> None:
    settings |= {"held_out": {"share": 0.0}}
    gone = []
    for name, micro in (("a", 8), ("b", 2)):
        trainer = TRAINER | {"max_steps": 3, "per_device_train_batch_size": micro, "optim": "sgd"}
        trainer |= {"gradient_accumulation_steps": 8 // micro, "train_sampling_strategy": "sequential"}
        run_stage("reward", settings | {"trainer": trainer}, context_for(tmp_path / name))
        gone.append(AutoModelForSequenceClassification.from_pretrained(tmp_path / name / "x" / "model").score.weight)
    assert gone[0].abs().max() > 0
    torch.testing.assert_close(gone[0], gone[1], atol=1e-7, rtol=1e-5)


def judged(n: int) -> list[dict[str, Any]]:
    """Two answers of which one is kinder and the other shorter."""
    kind, short = f"{n} a please", f"{n} b"
    asked = f"Number {n}?"
    return [
        {"prompt": asked, "chosen": kind, "rejected": short, "criterion": "kind", "margin": 2},
        {"prompt": asked, "chosen": short, "rejected": kind, "criterion": "short", "margin": 3},
    ]


def test_each_criterion_has_a_head(settings, tmp_path) -> None:
    settings["data"] = write_rows(tmp_path, [row for n in range(100) for row in judged(n)])
    settings |= {"criteria": {"short": 0.5, "kind": 2.0}, "trainer": TRAINER | {"max_steps": 30}}
    metrics = run_stage("reward", settings, context_for(tmp_path)).metrics
    assert list(metrics["by_criterion"]) == ["short", "kind"]
    assert all(entry["held_out_accuracy"] > 0.9 for entry in metrics["by_criterion"].values())
    loaded = reward_model.load(PathSource(path=str(tmp_path / "x" / "model"), format=None), context_for(tmp_path))
    assert (loaded.format.criteria, loaded.format.weights) == (("short", "kind"), (0.5, 2.0))
    (pair,) = pairs.encode([preference("7 a please", "7 b")], loaded.tokenizer, end=2, chat=True, heads=["reward"])
    kind, short = loaded.scores([pair.chosen, pair.rejected])
    assert short[0] > kind[0] and kind[1] > short[1]


def test_one_head_for_the_sum(settings, tmp_path) -> None:
    settings["data"] = write_rows(tmp_path, [row for n in range(100) for row in judged(n)])
    settings |= {"criteria": {"kind": 2.0, "short": 1.0}, "heads": "sum", "margin": True}
    metrics = run_stage("reward", settings, context_for(tmp_path)).metrics
    assert metrics["rows"] + metrics["held_out_rows"] == 100
    assert (metrics["tied_pairs"], metrics["format"]["criteria"]) == (0, {"reward": 1.0})


def test_what_does_not_fit_is_counted(settings, tmp_path) -> None:
    rows = rows_of(150) + [{"prompt": f"{n}?", "chosen": "a" + " b" * 200, "rejected": "b"} for n in range(50)]
    settings["data"] = write_rows(tmp_path, rows)
    ctx = context_for(tmp_path)
    metrics = run_stage("reward", settings, ctx).metrics
    assert {"event": "say", "text": "50 of 200 pairs (25%) are longer than 64 tokens: dropped"} in ctx.events
    assert metrics["rows"] + metrics["held_out_rows"] == 150
    ctx = context_for(tmp_path / "cut")
    result = run_stage("reward", settings | {"too_long": "truncate"}, ctx)
    assert {"event": "say", "text": "50 of 200 pairs (25%) are longer than 64 tokens: cut off"} in ctx.events
    assert result.metrics["rows"] + result.metrics["held_out_rows"] == 200
    assert all(gate.passed for gate in result.gates)


def test_answers_that_are_equal_once_cut_are_dropped(settings, tmp_path) -> None:
    long = {"prompt": "a b " * 100 + "?", "chosen": "yes", "rejected": "no"}
    settings["data"] = write_rows(tmp_path, [*rows_of(50), long])
    ctx = context_for(tmp_path)
    metrics = run_stage("reward", settings | {"too_long": "truncate"}, ctx).metrics
    assert metrics["equal_rows"] == 1
    assert {"event": "say", "text": "1 of 51 pairs are equal as tokens once they are cut: dropped"} in ctx.events


def refused(settings: dict[str, Any], tmp_path: Path) -> LlmpipeError:
    with pytest.raises(LlmpipeError) as caught:
        run_stage("reward", settings, context_for(tmp_path))
    return caught.value


def test_no_pair_fits(settings, tmp_path) -> None:
    error = refused(settings | {"context": 4}, tmp_path)
    assert isinstance(error, DataError)
    assert str(error) == "no pair fits into 4 tokens"
    assert error.hint == "use a model with a longer context, or too_long: truncate"


def test_encoder_decoders_are_refused(settings, tmp_path, tokenizer) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    shape = BartConfig(vocab_size=300, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
                       decoder_attention_heads=1, encoder_ffn_dim=16, decoder_ffn_dim=16)  # fmt: skip
    BartForConditionalGeneration(shape).save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    error = refused(settings | {"model": {"path": str(tmp_path / "bart")}}, tmp_path)
    assert isinstance(error, StageError)
    message = "bart is an encoder-decoder; a causal model is needed"
    assert str(error) == f"{tmp_path / 'bart'}: {message}"
    assert error.hint == "begin from a causal model, such as a Llama or a GPT-2"


def test_criteria_that_are_not_named_and_those_that_judge_nothing(settings, tmp_path) -> None:
    settings["data"] = write_rows(tmp_path, [row for n in range(20) for row in judged(n)])
    error = refused(settings | {"criteria": {"knd": 1.0, "short": 1.0}}, tmp_path)
    assert isinstance(error, DataError)
    assert str(error) == (
        f"{tmp_path / 'pairs.jsonl'}:1: judged by 'kind', which is not in criteria: knd, short, did you mean knd?\n"
        "no row is judged by 'knd', did you mean kind?"
    )
    assert error.hint == "name the criteria of the data under criteria:, or leave it out"


def test_margins_that_no_row_has(settings, tmp_path) -> None:
    error = refused(settings | {"margin": True}, tmp_path)
    assert str(error) == "margin: true, but no row has a margin"
    assert error.hint == "margin: false, or give the rows a margin column"


@pytest.mark.parametrize("with_template", [True, False])
def test_a_tokenizer_without_an_end(with_template, settings, tmp_path, tokenizer) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|pad|>")
    endless.chat_template = tokenizer.chat_template if with_template else None
    endless.save_pretrained(tmp_path / "m")
    if not with_template:
        (tmp_path / "m" / "chat_template.jinja").unlink()
    error = refused(settings, tmp_path)
    assert str(error) == (
        "the tokenizer has no end token, so that a finished answer would look like one that was cut off"
    )
    assert error.hint == 'name one of its tokens in tokenizer_config.json: "eos_token": "</s>"'
