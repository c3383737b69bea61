"""The rloo and grpo stages on tiny models: what they learn, resume, leave as it is, and hand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmpipe import stages
from llmpipe.artifact import read_manifest
from llmpipe.checkpoints import mark_complete
from llmpipe.errors import StageError, StoppedError
from tests.stages.tiny import context_for, gates_of, passed, run_recipe, run_stage, same, stop_after

KINDS = ("rloo", "grpo")

REWARD = """\
def letters(prompts, answers):
    return [sum(letter in 'aeiou' for letter in answer) / max(1, len(answer)) for answer in answers]

def right(prompts, answers, references):
    with open({seen!r}, 'a') as file:
        file.writelines(f'{{prompt}}|{{reference}}\\n' for prompt, reference in zip(prompts, references))
    return [float(len(answer) > 3) for answer in answers]
"""


@pytest.fixture
def settings(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    make_model(context=64).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "rewards.py").write_text(REWARD.format(seen=str(tmp_path / "seen")), encoding="utf-8")
    return {
        "model": {"path": str(tmp_path / "m")},
        "reward": {"function": f"{tmp_path / 'rewards.py'}:letters"},
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "held_out": {"share": 0.2},
        "rollouts": 3,
        "rollout": {"samples": 16, "samples_per_prompt": 4, "max_new_tokens": 12},
        "trainer": {"learning_rate": 1e-2},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_learns_what_scores_high(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    ctx = context_for(tmp_path)
    bigger = {"rollouts": 12, "rollout": {"samples": 64, "samples_per_prompt": 8, "max_new_tokens": 12}, "epochs": 2}
    bigger |= {"missing_end_penalty": 0.0, "beta": 0.0, "trainer": {"learning_rate": 2e-2, "warmup_steps": 0}}
    result = run_stage(kind, settings | bigger, ctx)
    metrics = result.metrics
    assert metrics["reward"] > metrics["reward_before"] + 0.2
    assert metrics["kl"] > 0.01 and metrics["answers"] == 12 * 64 and metrics["rollouts"] == 12
    assert metrics["prompts"] + metrics["held_out_prompts"] == 40 and metrics["too_long_prompts"] == 0
    assert metrics["tokens"] > 0 and metrics["best_step"] > 0
    assert passed(result.gates) == gates_of(kind, "checkpoint-replays")
    assert result.outputs == ["model", "samples.json"]
    lines = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    rollouts = [line for line in lines if "rollout" in line]
    assert [line["rollout"] for line in rollouts] == list(range(1, 13))
    assert {"reward", "reward_letters", "length", "ended_share", "entropy"} <= rollouts[0].keys()
    assert any("held_out_reward" in line and "held_out_kl" in line for line in lines)
    samples = json.loads((tmp_path / "x" / "samples.json").read_text())["samples"]
    assert sum(one["reward_after"] - one["reward_before"] for one in samples) > 0
    assert all(one["prompt"].startswith("What is") and one["before"] != one["after"] for one in samples)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "x" / "model")
    assert made.config.use_cache and AutoTokenizer.from_pretrained(tmp_path / "x" / "model").chat_template


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_it_resumes_to_the_bit(kind: str, lora: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """Between two rollouts and in the middle of one, the answers of which are learned from twice, in two parts."""
    settings |= {"epochs": 2, "minibatches": 2, "lora": lora, "evaluate_every": 1}
    whole = run_stage(kind, settings, context_for(tmp_path / "0"))
    assert whole.metrics["steps"] == 12
    file = "model/model.safetensors" if lora is None else "adapter/adapter_model.safetensors"
    for stop_at in (4, 6):
        folder = tmp_path / str(stop_at)
        with pytest.raises(StoppedError):
            run_stage(kind, settings, context_for(folder, stop=stop_after(stop_at, "terminate")))
        resumed = run_stage(kind, settings, context_for(folder))
        one, two = (load_file(run / "x" / file) for run in (tmp_path / "0", folder))
        assert all(torch.equal(one[name], two[name]) for name in one) and one.keys() == two.keys()
        assert {**whole.metrics, "tokens_per_s": 0} == {**resumed.metrics, "tokens_per_s": 0}
        assert all(gate.passed for gate in resumed.gates)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_leaves_its_base_alone(
    kind: str, tied: bool, settings: dict[str, Any], tmp_path: Path, make_model: Any
) -> None:
    make_model(context=64, tie_word_embeddings=tied).save_pretrained(tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    result = run_stage(kind, settings | {"keep": "last", "lora": {"r": 4, "use_dora": tied}}, context_for(tmp_path))
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert passed(result.gates) == gates_of(kind, "checkpoint-replays", "base-unchanged", "adapter-merges")
    assert 0 < result.metrics["trained_share"] < 0.5
    weights = load_file(tmp_path / "x" / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name and ".ref." not in name for name in weights)
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_a_chain_of_adapters_is_held_to_what_each_came_with(tmp_path: Path, make_model: Any, tokenizer: Any) -> None:
    """Trained further, or merged into the model: where the KL begins at 0, the reference is the policy as it came.

    TRL 1.16 would load the reference of a merged adapter from the path of the bare base.
    """
    make_model(context=64).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "rewards.py").write_text(REWARD.format(seen=str(tmp_path / "seen")), encoding="utf-8")
    stage = "model: tuned, reward: {function: rewards.py:letters}, data: {builtin: storyworld, rows: 40}, rollouts: 2"
    sampled = "rollout: {samples: 8, samples_per_prompt: 4, max_new_tokens: 8}, trainer: {learning_rate: 1e-2}"
    run = run_recipe(
        tmp_path,
        f"""\
name: chain
stages:
  tuned:
    kind: lora
    model: {{path: m}}
    data: {{builtin: storyworld, rows: 60}}
    too_long: truncate
    lora: {{r: 4, trainable_token_indices: null}}
    trainer: {{max_steps: 4, learning_rate: 1e-1, per_device_train_batch_size: 4}}
  further: {{kind: grpo, {stage}, {sampled}, lora: {{r: 4}}}}
  left: {{kind: rloo, {stage}, {sampled}, lora: {{r: 4}}}}
  merged: {{kind: grpo, {stage}, {sampled}}}
  free: {{kind: grpo, {stage}, {sampled}, lora: {{r: 4}}, beta: 0}}
""",
    )
    for name in ("further", "left", "merged", "free"):
        lines = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text().splitlines()]
        first = next(line for line in lines if "rollout" in line)
        assert abs(first.get("kl_per_token", 0)) < 1e-6
        assert ("kl_per_token" in first) == (name != "free")
        manifest = read_manifest(run / name)
        assert manifest is not None and manifest.metrics["kl"] > -0.05
        assert all(gate.passed for gate in manifest.gates)
    config = json.loads((run / "further" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "m"
    assert not same(tmp_path / "m", run / "merged" / "model")


@pytest.mark.parametrize("kind", [*KINDS, "rlhf-ppo"])
def test_a_function_gets_the_answers_of_the_rows(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    settings["reward"] = {"function": f"{tmp_path / 'rewards.py'}:right"}
    run_stage(kind, settings | {"rollouts": 1}, context_for(tmp_path))
    seen = {line for line in (tmp_path / "seen").read_text().splitlines() if line}
    assert len(seen) > 4
    for line in seen:
        prompt, _, reference = line.partition("|")
        assert reference == prompt.replace("What is", "It is").replace("?", ".")


WRONG = {
    "one answer to a prompt": ({"rollout": {"samples_per_prompt": 1}}, "Input should be greater than 1"),
    "a part of a group": (
        {"rollout": {"samples": 12}},
        "samples (12) is not a multiple of samples_per_prompt (8)",
    ),
    "a part of a minibatch": ({"minibatches": 3}, "rollout.samples (64) is not a multiple of minibatches"),
    "dropout": ({"dropout": 0.1}, "dropout makes the probabilities before and after a step differ; leave it out"),
    "dropout of an adapter": (
        {"lora": {"lora_dropout": 0.1}},
        "lora.lora_dropout makes the probabilities before and after a step differ; leave it out",
    ),
    "tokens": ({"held_out": {"max_tokens": 7}}, "held_out.max_tokens is of texts; set evaluate_answers"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_together(kind: str, what: str) -> None:
    given, message = WRONG[what]
    with pytest.raises(ValidationError) as caught:
        stages.load(kind).Settings.model_validate({"kind": kind, **given})
    assert message in str(caught.value)


def test_settings_of_a_step_are_read_again() -> None:
    """A worker reads them with every default written out."""
    for kind in KINDS:
        cls = stages.load(kind).Settings
        assert cls.model_validate(cls.model_validate({"kind": kind}).model_dump(mode="json")).kind == kind  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_other_processes_is_refused(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run_stage(kind, settings, context_for(tmp_path, stop=stop_after(1, "terminate")))
    (folder,) = (tmp_path / "x" / "checkpoints").glob("checkpoint-1")
    (folder / "group-0-of-1.json").rename(folder / "group-0-of-2.json")
    mark_complete(folder, step=1)
    with pytest.raises(StageError) as caught:
        run_stage(kind, settings, context_for(tmp_path))
    assert str(caught.value) == "the checkpoint was saved by 1 processes, and 1 are running"
