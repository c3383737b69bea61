"""The kto stage on tiny models: what it learns, resumption, adapters, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmpipe.errors import DataError, StageError, StoppedError
from llmpipe.stages import kto
from llmpipe.training.ppo.shared import POLICY
from tests.stages.test_adapters import manifest
from tests.stages.test_dpo import rows_of, write_rows
from tests.stages.test_lora import loaded
from tests.stages.tiny import context_for, gates_of, passed, probed, run_stage, same, stop_after

TRAINER = {"per_device_train_batch_size": 8, "max_steps": 6, "eval_steps": 6, "logging_steps": 1, "learning_rate": 1e-2}


def labelled_rows(count: int) -> list[dict[str, Any]]:
    """Answers that differ in one letter: the good ones have an a."""
    pairs = rows_of(count)
    return [
        {"prompt": pair["prompt"], "completion": pair["chosen" if n % 2 else "rejected"], "label": n % 2 == 1}
        for n, pair in enumerate(pairs)
    ]


@pytest.fixture
def model_folder(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, str]:
    make_model(context=64).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return {"path": str(tmp_path / "m")}


@pytest.fixture
def settings(model_folder: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    data = write_rows(tmp_path, labelled_rows(120))
    return {"model": model_folder, "data": data, "held_out": {"share": 0.2}, "trainer": TRAINER}


def test_it_learns_which_answers_are_good(settings, tmp_path) -> None:
    """Though no prompt has two answers."""
    ctx = context_for(tmp_path)
    metrics = run_stage("kto", settings | {"trainer": TRAINER | {"max_steps": 30, "eval_steps": 10}}, ctx).metrics
    assert metrics["held_out_auc"] >= 0.95
    assert metrics["held_out_auc_before"] == 0.5
    assert metrics["reward_good"] > 0 > metrics["reward_bad"]
    assert metrics["train_loss_first"] == pytest.approx(0.5, abs=1e-6)
    assert metrics["held_out_loss"] < 0.45
    assert metrics["good_nats"] < metrics["good_nats_before"]
    assert metrics["rows"] + metrics["held_out_rows"] == 120
    assert metrics["held_out_good"] + metrics["held_out_bad"] == metrics["held_out_rows"] > 10
    assert not {"held_out_perplexity", "held_out_loss_before", "held_out_accuracy"} & set(metrics)
    share = f"{metrics['held_out_auc']:.1%}"
    assert ctx.events[-1]["text"] == (
        f"gave a good answer more reward than a bad one in {share} of all cases, "
        f"of {metrics['held_out_good']} good and {metrics['held_out_bad']} bad held-out answers"
    )
    logged = [event for event in ctx.events if "held_out_loss" in event]
    assert logged and all(0 <= event["held_out_auc"] <= 1 for event in logged)
    assert not any("rewards/margins" in event for event in logged)  # which are those of batches trained on


def test_pairs_are_good_and_bad_answers(settings, tmp_path) -> None:
    settings["data"] = write_rows(tmp_path, rows_of(60))
    ctx = context_for(tmp_path)
    result = run_stage("kto", settings | {"trainer": TRAINER | {"max_steps": 20}}, ctx)
    assert passed(result.gates) == gates_of("kto", "checkpoint-replays")
    metrics = result.metrics
    assert metrics["rows"] == 2 * metrics["good_rows"] and metrics["good_to_bad"] == 1
    assert metrics["held_out_pairs"] == metrics["held_out_good"] == metrics["held_out_bad"]
    assert metrics["held_out_accuracy"] >= 0.95
    low, high = metrics["held_out_accuracy_interval"]
    assert ctx.events[-1]["text"] == (
        f"of answers to the same prompt, it was the good one in {metrics['held_out_accuracy']:.1%} of "
        f"{metrics['held_out_pairs']} pairs (95% interval {low:.1%}–{high:.1%})"
    )


def test_it_resumes_to_the_bit(settings, tmp_path) -> None:
    """In the middle of the second epoch."""
    settings["data"] = write_rows(tmp_path, labelled_rows(40))
    settings |= {"trainer": TRAINER | {"gradient_accumulation_steps": 2, "save_steps": 1}}
    whole = run_stage("kto", settings, context_for(tmp_path / "a"))
    with pytest.raises(StoppedError):
        run_stage("kto", settings, context_for(tmp_path / "b", stop=stop_after(4, "interrupt")))
    resumed = run_stage("kto", settings, context_for(tmp_path / "b"))
    assert same(tmp_path / "a" / "x" / "model", tmp_path / "b" / "x" / "model")
    assert {**whole.metrics, "tokens_per_s": 0} == {**resumed.metrics, "tokens_per_s": 0}
    assert all(gate.passed for gate in resumed.gates)


def test_with_an_adapter_the_base_stays_and_it_resumes_to_the_bit(settings, tmp_path, policies) -> None:
    settings |= {"lora": {"r": 4}}
    result = run_stage("kto", settings, context_for(tmp_path / "a"))
    assert result.outputs == ["adapter"]
    assert passed(result.gates) == gates_of("kto", "checkpoint-replays", "base-unchanged", "adapter-merges")
    assert all(gate.passed for gate in result.gates)
    ((policy, wanted),) = policies
    assert list(policy.peft_config) == [POLICY]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m").state_dict()
    after = policy.unload().state_dict()
    assert base.keys() == after.keys() and all(torch.equal(base[name], after[name]) for name in base)
    with pytest.raises(StoppedError):
        run_stage("kto", settings, context_for(tmp_path / "b", stop=stop_after(3, "interrupt")))
    ctx = context_for(tmp_path / "b")
    run_stage("kto", settings, ctx)
    one, two = (load_file(tmp_path / name / "x" / "adapter" / "adapter_model.safetensors") for name in ("a", "b"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    manifest(ctx.dir, model=settings["model"])
    torch.testing.assert_close(probed(loaded(ctx.dir / "adapter", ctx)[0], 64), wanted[:, :64], atol=1e-5, rtol=0)


def test_options_of_trl_reach_it(settings, tmp_path) -> None:
    few = TRAINER | {"max_steps": 3, "warmup_steps": 0}
    changes = {
        "a": {"trainer": few},
        "b": {"trainer": few | {"loss_type": "apo_zero_unpaired"}},
        "c": {"trainer": few, "beta": 1.0},
        "d": {"trainer": few | {"desirable_weight": 3.0}},
    }
    settings |= {"held_out": {"share": 0.0}}
    for name, more in changes.items():
        run_stage("kto", settings | more, context_for(tmp_path / name))
    assert not any(same(tmp_path / "a" / "x" / "model", tmp_path / name / "x" / "model") for name in "bcd")


def test_an_answer_alone_in_its_batch_is_refused(settings, tmp_path) -> None:
    alone = {"kind": "kto", "trainer": {"per_device_train_batch_size": 1}}
    with pytest.raises(ValidationError) as caught:
        kto.Settings.model_validate(alone)
    reason = "leaves no other answer in the batch to estimate the KL term from; 2 is the least"
    assert f"trainer.per_device_train_batch_size: 1 {reason}" in str(caught.value)
    alone["trainer"]["loss_type"] = "apo_zero_unpaired"  # type: ignore[index]
    kto.Settings.model_validate(alone)
    settings |= {"batch_tokens": 16, "trainer": {"max_steps": 1}}
    with pytest.raises(StageError) as refused:
        run_stage("kto", settings, context_for(tmp_path))
    assert str(refused.value) == f"batch_tokens: 16 {reason}"
    assert refused.value.hint == "raise it, or micro_batch_tokens"


def test_answers_of_one_kind_are_refused(settings, tmp_path) -> None:
    settings["data"] = write_rows(tmp_path, [row for row in labelled_rows(40) if row["label"]])
    with pytest.raises(DataError, match=r"labelled good \(true\); kto learns from both kinds"):
        run_stage("kto", settings, context_for(tmp_path))


def test_what_does_not_fit_is_counted(settings, tmp_path) -> None:
    long = [{"prompt": f"{n}?", "completion": "a" + " b" * 200, "label": True} for n in range(20)]
    settings["data"] = write_rows(tmp_path, labelled_rows(60) + long)
    settings["trainer"] = TRAINER | {"max_steps": 1}
    for name, how, kept, text in (("a", "drop", 60, "dropped"), ("b", "truncate", 80, "cut off")):
        ctx = context_for(tmp_path / name)
        result = run_stage("kto", settings | {"too_long": how}, ctx)
        assert {"event": "say", "text": f"20 of 80 answers (25%) are longer than 64 tokens: {text}"} in ctx.events
        assert result.metrics["rows"] + result.metrics["held_out_rows"] == kept
        assert all(gate.passed for gate in result.gates)


def test_no_answer_fits(settings, tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        run_stage("kto", settings | {"context": 4}, context_for(tmp_path))
    assert str(caught.value) == "no answer fits into 4 tokens"
    assert caught.value.hint == "use a model with a longer context, or too_long: truncate"


def test_dropout_is_refused() -> None:
    for more in ({"dropout": 0.1}, {"lora": {"lora_dropout": 0.1}}):
        with pytest.raises(ValidationError, match="makes the policy differ from the reference before it learns"):
            kto.Settings.model_validate({"kind": "kto", **more})


def test_rows_are_read_from_a_file(settings, tmp_path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b", "label": "yes"}) + "\n")
    with pytest.raises(DataError) as caught:
        run_stage("kto", settings, context_for(tmp_path))
    assert str(caught.value) == f"{tmp_path / 'pairs.jsonl'}:1: label is text, not true or false"
