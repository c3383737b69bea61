"""The dpo stage on tiny models: what it learns, resumption, what it leaves out, and what it says of bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GenerationConfig

from llmpipe.errors import DataError, StoppedError
from llmpipe.stages import dpo
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


def test_it_learns_which_answer_is_better(settings, tmp_path) -> None:
    ctx = context_for(tmp_path)
    result = run_stage("dpo", settings | {"trainer": TRAINER | {"max_steps": 30, "logging_steps": 7}}, ctx)
    metrics = result.metrics
    assert metrics["held_out_accuracy"] >= 0.95
    assert metrics["chosen_likelier_share"] >= 0.95
    assert metrics["held_out_accuracy_before"] == 0.5
    assert 0 <= metrics["chosen_likelier_share_before"] <= 1
    assert metrics["train_loss_first"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["held_out_loss"] < 0.6
    assert metrics["rows"] + metrics["held_out_rows"] == 200
    assert metrics["held_out_rows"] == metrics["held_out_pairs"] > 20
    assert metrics["mean_margin"] > 0.2
    assert not {"held_out_perplexity", "held_out_loss_before", "tied_pairs"} & set(metrics)
    assert passed(result.gates) == gates_of("dpo", "checkpoint-replays")
    low, high = metrics["held_out_accuracy_interval"]
    assert ctx.events[-1]["text"] == (
        f"made the better answer likelier than the worse one, next to what it was, in "
        f"{metrics['held_out_accuracy']:.1%} of {metrics['held_out_pairs']} held-out pairs "
        f"(95% interval {low:.1%}–{high:.1%})"
    )
    logged = [event for event in ctx.events if "held_out_loss" in event]
    assert all(0 <= event["held_out_accuracy"] <= 1 for event in logged) and logged
    assert not any("rewards/margins" in event for event in logged)  # which are those of batches trained on


def test_what_is_saved_stops_at_the_end_of_its_template(settings, tmp_path, tokenizer) -> None:
    settings["chat_template"] = "{% for message in messages %}{{ message['content'] + '<|tool|>' }}{% endfor %}"
    result = run_stage("dpo", settings, context_for(tmp_path))
    assert result.metrics["end_token"] == "<|tool|>"
    assert all(gate.passed for gate in result.gates)
    config = GenerationConfig.from_pretrained(tmp_path / "x" / "model")
    assert tokenizer.convert_tokens_to_ids("<|tool|>") in config.eos_token_id
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "x" / "model").config.use_cache


def test_it_resumes_to_the_bit(settings, tmp_path) -> None:
    """In the middle of the second epoch, with batches that are put together anew in each, and after the last step."""
    rows = [row | {"chosen": row["chosen"] * (n % 5 + 1)} for n, row in enumerate(rows_of(40))]
    settings["data"] = write_rows(tmp_path, rows)
    settings |= {"trainer": TRAINER | {"gradient_accumulation_steps": 2, "save_steps": 1}}
    whole = run_stage("dpo", settings, context_for(tmp_path / "whole"))
    assert whole.metrics["steps"] == 8
    for stop_at, how in ((4, "interrupt"), (8, "terminate")):
        with pytest.raises(StoppedError):
            run_stage("dpo", settings, context_for(tmp_path / how, stop=stop_after(stop_at, how)))
        resumed = run_stage("dpo", settings, context_for(tmp_path / how))
        assert same(tmp_path / "whole" / "x" / "model", tmp_path / how / "x" / "model")
        assert {**whole.metrics, "tokens_per_s": 0} == {**resumed.metrics, "tokens_per_s": 0}
        assert all(gate.passed for gate in resumed.gates)


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(settings, tmp_path) -> None:
    settings |= {"held_out": {"share": 0.0}}
    gone = []
    for name, micro in (("a", 8), ("b", 2)):
        trainer = TRAINER | {"max_steps": 3, "per_device_train_batch_size": micro, "optim": "sgd"}
        trainer |= {"gradient_accumulation_steps": 8 // micro, "train_sampling_strategy": "sequential"}
        run_stage("dpo", settings | {"trainer": trainer}, context_for(tmp_path / name))
        gone.append(AutoModelForCausalLM.from_pretrained(tmp_path / name / "x" / "model").lm_head.weight)
    begun = AutoModelForCausalLM.from_pretrained(tmp_path / "m").lm_head.weight
    assert (gone[0] - begun).abs().max() > 1e-6
    torch.testing.assert_close(gone[0], gone[1], atol=1e-7, rtol=1e-5)


def test_options_of_trl_reach_it(settings, tmp_path) -> None:
    for name, more in (("a", {}), ("b", {"trainer": TRAINER | {"loss_type": ["ipo"]}}), ("c", {"beta": 1.0})):
        run_stage("dpo", settings | more, context_for(tmp_path / name))
    assert not same(tmp_path / "a" / "x" / "model", tmp_path / "b" / "x" / "model")
    assert not same(tmp_path / "a" / "x" / "model", tmp_path / "c" / "x" / "model")


def test_dropout_of_the_model_is_off(settings, tmp_path, make_model) -> None:
    """The attention's own, which TRL 1.16 leaves on: with it, the first loss is not log 2."""
    make_model(context=64, attention_dropout=0.5).save_pretrained(tmp_path / "m")
    metrics = run_stage("dpo", settings, context_for(tmp_path)).metrics
    assert metrics["train_loss_first"] == pytest.approx(math.log(2), abs=1e-6)


def test_dropout_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        dpo.Settings.model_validate({"kind": "dpo", "dropout": 0.1})
    assert "dropout makes the policy differ from the reference before it learns; leave it out" in str(caught.value)


def test_several_criteria_are_added_up(settings, tmp_path) -> None:
    one = rows_of(60, criterion="kind", margin=3)
    other = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in one]
    other = [row | {"criterion": "short", "margin": 3 if n < 20 else 1} for n, row in enumerate(other)]
    settings["data"] = write_rows(tmp_path, one + other)
    metrics = run_stage("dpo", settings, context_for(tmp_path)).metrics
    assert metrics["tied_pairs"] == 20
    assert metrics["rows"] + metrics["held_out_rows"] == 40


def test_what_does_not_fit_is_counted(settings, tmp_path) -> None:
    rows = rows_of(150) + [{"prompt": f"{n}?", "chosen": "a" + " b" * 200, "rejected": "b"} for n in range(50)]
    settings["data"] = write_rows(tmp_path, rows)
    for name, how, kept, text in (("a", "drop", 150, "dropped"), ("b", "truncate", 200, "cut off")):
        ctx = context_for(tmp_path / name)
        result = run_stage("dpo", settings | {"too_long": how}, ctx)
        assert {"event": "say", "text": f"50 of 200 pairs (25%) are longer than 64 tokens: {text}"} in ctx.events
        assert result.metrics["rows"] + result.metrics["held_out_rows"] == kept
        assert all(gate.passed for gate in result.gates)


def test_no_pair_fits(settings, tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        run_stage("dpo", settings | {"context": 4}, context_for(tmp_path))
    assert str(caught.value) == "no pair fits into 4 tokens"
    assert caught.value.hint == "use a model with a longer context, or too_long: truncate"
