"""Checkpoints of PPO: resumed runs end as uninterrupted ones, to the bit, from anywhere in a rollout (item 26)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmpipe.errors import StageError, StoppedError
from tests.stages.ppo_worlds import equal, llama, made, weights
from tests.stages.tiny import context_for, run_stage, same, stop_after

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_grad_norm": 1.0}
EVERYTHING = {
    "kl": {"coefficient": 0.1, "target": 0.5, "horizon": 100},
    "rollout": {"samples": 16, "max_new_tokens": 6},
    "micro_batch": 4,
    "arguments": SAVING,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Three rollouts of four steps, saved after every step."""
    folder = tmp_path_factory.mktemp("whole")
    trainer, _ = made(folder, **EVERYTHING)
    trainer.train()
    return folder, trainer


@pytest.mark.parametrize("step", [1, 4, 6, 7, 8, 11])
def test_a_run_goes_on_from_any_step(whole: tuple[Path, Any], tmp_path: Path, step: int) -> None:
    """At the border of a rollout, 4 and 8, and in the middle of one."""
    folder, wanted = whole
    trainer, watch = made(tmp_path, **EVERYTHING)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoints" / f"checkpoint-{step}"))
    assert len(watch.steps) == 12 - step
    assert equal(weights(trainer), weights(wanted))
    assert trainer.price.beta == wanted.price.beta and trainer.stream == wanted.stream
    assert len(trainer.history) == 3
    for one, two in zip(trainer.history, wanted.history, strict=True):
        assert untimed(one) == untimed(two)


def untimed(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.startswith(("seconds", "train_"))}


def test_nothing_in_a_checkpoint_of_ours_is_pickled(whole: tuple[Path, Any]) -> None:
    folder = whole[0] / "checkpoints" / "checkpoint-6"
    assert {path.name for path in folder.glob("ppo-*")} == {"ppo-0-of-1.safetensors", "ppo-0-of-1.json"}
    state = json.loads((folder / "ppo-0-of-1.json").read_text(encoding="utf-8"))
    assert len(state["plan"]) == 2 * 2 and state["rollouts"] == 2


def test_another_number_of_processes_is_refused(whole: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-6"
    folder.symlink_to(whole[0] / "checkpoints" / "checkpoint-6")
    trainer, _ = made(tmp_path, **EVERYTHING)
    trainer._name = lambda: "ppo-1-of-2"  # type: ignore[method-assign]
    with pytest.raises(StageError) as error:
        trainer.train(resume_from_checkpoint=str(folder))
    assert str(error.value) == "the checkpoint was saved by 1 processes, and 1 are running"
    assert error.value.hint == "--processes 1, or --force to begin the stage again"


def test_another_reference_is_refused(whole: tuple[Path, Any], tmp_path: Path) -> None:
    """Item 29."""
    trainer, _ = made(tmp_path, policy=llama(7, seed=5, context=16), **EVERYTHING)
    with pytest.raises(StageError) as error:
        trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoints" / "checkpoint-6"))
    assert str(error.value) == "the reference model is not the one that the checkpoint was trained against"


def test_weights_that_do_not_fit_are_refused(whole: tuple[Path, Any], tmp_path: Path) -> None:
    trainer, _ = made(tmp_path, value_model="head", **EVERYTHING)
    with pytest.raises(RuntimeError, match="value"):
        trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoints" / "checkpoint-6"))


# --- the stage itself


@pytest.fixture
def stage(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    """Settings of a stage with four rollouts of four steps, measured after every second one."""
    make_model(context=96, attention_dropout=0.1).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rows = [{"prompt": f"Tell me about {word}."} for word in "a duck,a shoe,the sea,my hat,one egg,the rain".split(",")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "judge.py").write_text(
        "def vowels(prompts, answers):\n    return [sum(map(a.count, 'aeiou')) / 10 for a in answers]\n"
    )
    return {
        "model": {"path": str(tmp_path / "m")},
        "reward": {"function": f"{tmp_path}/judge.py:vowels"},
        "data": {"path": str(tmp_path / "p.jsonl")},
        "rollouts": 4,
        "rollout": {"samples": 8, "max_new_tokens": 8},
        "held_out": {"share": 0.34},
        "evaluate_every": 2,
        "micro_batch_tokens": 200,
        "trainer": {"learning_rate": 5e-3, "save_steps": 1},
        "precision": "fp32",
        "keep": "last",  # the best may be the first: the value alone learns in the first rollouts
    }


TIMED = ("tokens_per_s", "seconds")


def test_the_stage_goes_on_to_the_bit(stage: dict[str, Any], tmp_path: Path) -> None:
    """At a rollout's border, in its middle, and after the last step, with everything trained and not yet kept."""
    whole = run_stage("rlhf-ppo", stage, context_for(tmp_path / "0"))
    assert not same(tmp_path / "0" / "x" / "model", tmp_path / "m")
    for step, how in ((8, "interrupt"), (10, "terminate"), (16, "interrupt")):
        folder = tmp_path / str(step)
        with pytest.raises(StoppedError):
            run_stage("rlhf-ppo", stage, context_for(folder, stop=stop_after(step, how)))
        resumed = run_stage("rlhf-ppo", stage, context_for(folder))
        assert same(tmp_path / "0" / "x" / "model", folder / "x" / "model")
        for key in whole.metrics:
            assert key in TIMED or resumed.metrics[key] == whole.metrics[key], key
        assert all(gate.passed for gate in resumed.gates)
        samples = [(run / "x" / "samples.json").read_text() for run in (tmp_path / "0", folder)]
        assert samples[0] == samples[1]


def test_the_output_is_a_plain_model(stage: dict[str, Any], tmp_path: Path) -> None:
    """Item 27: it loads as it is, with names of its own architecture and nothing beside."""
    run_stage("rlhf-ppo", stage | {"keep": "last", "rollouts": 1}, context_for(tmp_path))
    model, facts = AutoModelForCausalLM.from_pretrained(tmp_path / "x" / "model", output_loading_info=True)
    assert not any(facts.values()), facts
    assert not any(isinstance(module, torch.nn.Dropout) and module.p for module in model.modules())
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.state_dict().keys() == before.state_dict().keys()
    assert model.generation_config.eos_token_id is not None
