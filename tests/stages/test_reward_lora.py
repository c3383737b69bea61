"""The reward stage with an adapter: only it and the heads move, and what is saved scores as what was trained."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmpipe.artifact import read_json
from llmpipe.context import Context
from llmpipe.errors import StageError, StoppedError
from llmpipe.settings import PathSource
from llmpipe.training import lora, models, reward_model
from llmpipe.training.ppo.shared import SCORE
from llmpipe.training.reward_model import RewardModel, classifier
from tests.stages.preferred import reward_adapter
from tests.stages.test_adapters import manifest
from tests.stages.test_lora import ADAPTERS, said
from tests.stages.tiny import context_for, gates_of, passed, run_stage, stop_after

TRAINER = {"per_device_train_batch_size": 8, "max_steps": 8, "eval_steps": 4, "logging_steps": 1, "learning_rate": 1e-2}
ANSWERS = [[2, *range(10, 30)], [2, 50, 51, 3], [2, 90, 3]]
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 2}


def settings_for(folder: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Write a model and pairs down, and return how a stage trains an adapter on them."""
    models.save(model, tokenizer, folder / "m")
    rows = rows or [{"prompt": f"Number {n}?", "chosen": f"{n} a", "rejected": f"{n} b"} for n in range(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"path": str(folder / "pairs.jsonl")}
    held_out = {"share": 0.2}
    return {"model": {"path": str(folder / "m")}, "data": data, "held_out": held_out, "lora": {"r": 4}} | {
        "trainer": TRAINER
    }


@pytest.fixture
def settings(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    return settings_for(tmp_path, make_model(tie_word_embeddings=True), tokenizer)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RewardModel, torch.Tensor]]:
    """What stages saved, as it was in memory, and what it scores."""
    seen: list[tuple[RewardModel, torch.Tensor]] = []
    save = reward_model.save

    def watched(reward: RewardModel, *given: Any) -> None:
        seen.append((RewardModel(deepcopy(reward.model), reward.tokenizer, reward.format), reward.scores(ANSWERS)))
        save(reward, *given)

    monkeypatch.setattr(reward_model, "save", watched)
    return seen


def finished(settings: dict[str, Any], ctx: Context) -> Path:
    """Run the stage, and say in a manifest that it is done; returns its adapter."""
    result = run_stage("reward", settings, ctx)
    assert all(gate.passed for gate in result.gates)
    manifest(ctx.dir, model=settings["model"])
    return ctx.dir / "adapter"


def loaded(folder: Path, ctx: Context) -> RewardModel:
    return reward_model.load(PathSource(path=str(folder), format=None), ctx)


@pytest.mark.parametrize(
    ("arch", "tied", "kind"),
    [*(("llama", True, kind) for kind in ADAPTERS), ("llama", False, "lora"), ("gpt2", True, "lora")],
)
def test_only_the_adapter_and_the_heads_move_and_merged_they_score_the_same(
    arch: str, tied: bool, kind: str, make_model: Any, tokenizer: Any, tmp_path: Path, trained: list[Any]
) -> None:
    model = make_model(arch, tie_word_embeddings=tied, **(GPT2 if arch == "gpt2" else {}))
    base = deepcopy(model).base_model
    ctx = context_for(tmp_path)
    given = settings_for(tmp_path, model, tokenizer)
    folder = finished(given | {"lora": {"r": 4, **ADAPTERS[kind]}}, ctx)

    ((reward, wanted),) = trained
    names = lora.trained(reward.model)
    assert all(".lora_" in name or name.endswith("score.modules_to_save.default.weight") for name in names)
    assert all(parameter.abs().max() > 0 for name, parameter in names.items() if "lora_B" in name or "score" in name)
    plain = deepcopy(reward.model).unload().base_model
    before, after = base.state_dict(), plain.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    again = loaded(folder, ctx)
    assert not isinstance(again.model, PeftModel)
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    torch.testing.assert_close(again.scores(ANSWERS), wanted, atol=1e-5, rtol=0)
    assert wanted.std() > 1e-3
    reward_model.save(again, tmp_path / "whole")
    torch.testing.assert_close(loaded(tmp_path / "whole", ctx).scores(ANSWERS), wanted, atol=1e-5, rtol=0)
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert (causal.get_input_embeddings().weight is causal.get_output_embeddings().weight) == tied


def test_what_is_written_and_said(settings: dict[str, Any], tmp_path: Path) -> None:
    ctx = context_for(tmp_path)
    settings["trainer"] = {"max_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1}
    result = run_stage("reward", settings, ctx)
    assert result.outputs == ["adapter"]
    assert {file.name for file in (ctx.dir / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "reward.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    count = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64)) + 32
    assert result.metrics["trained_parameters"] == count
    assert f": {count:,} parameters are trained, " in said(ctx)
    assert passed(result.gates) == gates_of("reward", "checkpoint-replays", "base-unchanged", "adapter-merges")
    rates = [json.loads(line).get("learning_rate") for line in (ctx.dir / "metrics.jsonl").read_text().splitlines()]
    assert {rate for rate in rates if rate is not None} == {1e-4}
    config = read_json(ctx.dir / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "m"
    assert str(tmp_path) not in json.dumps(config)


def test_peft_alone_can_read_it(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    reward = reward_adapter(tmp_path / "judge", make_model(), tokenizer)
    model = classifier(make_model(), ("reward",))
    again = RewardModel(PeftModel.from_pretrained(model, tmp_path / "judge"), tokenizer, reward.format)
    assert torch.equal(again.scores(ANSWERS), reward.scores(ANSWERS))


def test_it_resumes_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"lora": {"r": 4, "lora_dropout": 0.1, "use_dora": True}}
    whole = run_stage("reward", settings, context_for(tmp_path / "0"))
    for stop_at in (3, 8):
        folder = tmp_path / str(stop_at)
        with pytest.raises(StoppedError):
            run_stage("reward", settings, context_for(folder, stop=stop_after(stop_at, "interrupt")))
        checkpoint = folder / "x" / "checkpoints" / f"checkpoint-{stop_at}" / "model.safetensors"
        assert all(".lora_" in name or ".score." in name for name in load_file(checkpoint))
        ctx = context_for(folder)
        resumed = run_stage("reward", settings, ctx)
        assert f"resuming from step {stop_at}" in said(ctx)
        one, two = (load_file(run / "x" / "adapter" / "adapter_model.safetensors") for run in (tmp_path / "0", folder))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert resumed.metrics | {"tokens_per_s": 0} == whole.metrics | {"tokens_per_s": 0}


def test_recomputed_activations_lead_to_the_same_adapter(settings: dict[str, Any], tmp_path: Path) -> None:
    saved = []
    for name, more in (("a", {}), ("b", {"activation_checkpointing": True})):
        given = settings | {"trainer": TRAINER | {"max_steps": 4} | more}
        run_stage("reward", given, context_for(tmp_path / name))
        saved.append(load_file(tmp_path / name / "x" / "adapter" / "adapter_model.safetensors"))
    assert all(tensor.abs().max() > 0 for tensor in saved[0].values())
    assert all(torch.allclose(saved[0][key], saved[1][key], atol=1e-5) for key in saved[0])


def test_each_criterion_has_a_head(settings: dict[str, Any], tmp_path: Path, trained: list[Any]) -> None:
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    judged = [row | {"criterion": "kind" if n % 2 else "short"} for n, row in enumerate(rows)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged), encoding="utf-8")
    ctx = context_for(tmp_path)
    again = loaded(finished(settings | {"criteria": {"short": 0.5, "kind": 2.0}}, ctx), ctx)
    assert (again.format.criteria, again.format.weights) == (("short", "kind"), (0.5, 2.0))
    torch.testing.assert_close(again.scores(ANSWERS), trained[0][1], atol=1e-5, rtol=0)
    assert again.model.config.id2label == {0: "short", 1: "kind"}


def test_a_token_that_the_base_never_saw_is_told_apart(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Its row stays as it is, the mean of the others; the layers above learn what it means, merged or not."""
    model = make_model()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|kind|>"]}, replace_extra_special_tokens=False)
    models.grow(model, len(tokenizer))
    assert model.config.vocab_size == 301
    rows = [{"prompt": f"Number {n}?", "chosen": f"{n}<|kind|>", "rejected": f"{n}<|tool|>"} for n in range(80)]
    ctx = context_for(tmp_path)
    given = settings_for(tmp_path, model, tokenizer, rows)
    result = run_stage("reward", given, ctx)
    assert result.metrics["held_out_accuracy"] == 1.0
    manifest(ctx.dir, model=given["model"])
    new, other = tokenizer.convert_tokens_to_ids(["<|kind|>", "<|tool|>"])
    found = loaded(ctx.dir / "adapter", ctx).scores([[2, 40, new, 3], [2, 40, other, 3]])
    assert found[0] > found[1]


@pytest.mark.parametrize(
    ("asked", "base", "reason"), [({}, "m", None), ({"r": 2}, "x+adapter", "its r is 4, and 2 is asked for")]
)
def test_an_adapter_of_sft_is_trained_further(
    asked: dict[str, Any], base: str, reason: str | None, settings: dict[str, Any], tmp_path: Path, trained: list[Any]
) -> None:
    """On the very model that it is on; of another shape, it is merged first."""
    chat = context_for(tmp_path / "chat")
    taught = {"builtin": "storyworld", "rows": 60}
    options = {"lora": {"r": 4, "trainable_token_indices": None}, "trainer": TRAINER, "too_long": "truncate"}
    run_stage("sft", {"model": settings["model"], "data": taught, **options}, chat)
    manifest(chat.dir, model=settings["model"])
    ctx = context_for(tmp_path / "judge")
    folder = finished(settings | {"model": {"path": str(chat.dir / "adapter")}, "lora": asked}, ctx)
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == base.replace("x", "adapter")
    assert (f"a new one begun on it: {reason}" in said(ctx)) == (reason is not None)
    torch.testing.assert_close(loaded(folder, ctx).scores(ANSWERS), trained[0][1], atol=1e-5, rtol=0)
    before = load_file(chat.dir / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    apart = (load_file(folder / "adapter_model.safetensors")[name][:2] - before[name][:2]).abs().max()
    assert (apart < 0.1) == (reason is None)  # steps of 1e-2 from where the other ended, or a fresh beginning


@pytest.mark.parametrize("modules", [["q_proj", "lm_head"], ".*(q_proj|lm_head)"])
def test_the_output_layer_is_refused(modules: Any, make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    given = settings_for(tmp_path, make_model(tie_word_embeddings=False), tokenizer)
    with pytest.raises(StageError) as caught:
        run_stage("reward", given | {"lora": {"target_modules": modules}}, context_for(tmp_path))
    assert str(caught.value) == "lora.target_modules names the output layer, which a reward model does not have"
    assert caught.value.hint == "target_modules: all-linear"


def test_a_base_that_moved_and_a_head_that_was_lost_fail_a_gate(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = reward_model.save

    def after_a_push(reward: RewardModel, *given: Any) -> None:
        save(reward, *given)
        for parameter in (next(reward.model.parameters()), reward.model.score.weight):
            parameter.data += 0.1

    monkeypatch.setattr(reward_model, "save", after_a_push)
    result = run_stage("reward", settings, context_for(tmp_path))
    assert [gate.name for gate in result.gates if not gate.passed] == [
        "head-reloads",
        "weights-reload",
        "base-unchanged",
    ]


def made_elsewhere(folder: Path, model: Any, tokenizer: Any, change: Any = lambda weights: None) -> RewardModel:
    """Write a model and an adapter without what only llmpipe writes, and change the weights."""
    models.save(model, tokenizer, folder / "m")
    reward = reward_adapter(folder / "judge", model, tokenizer)
    (folder / "judge" / "reward.json").unlink()
    weights = load_file(folder / "judge" / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "judge" / "adapter_model.safetensors", metadata={"format": "pt"})
    return reward


def test_one_from_elsewhere_reads_its_own_template(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    reward = made_elsewhere(tmp_path, make_model(), tokenizer)
    ctx = context_for(tmp_path)
    again = loaded(tmp_path / "judge", ctx)
    assert again.format == reward.format
    assert "has no reward.json: it is taken to read its tokenizer's chat template, and <|end|>" in said(ctx)
    torch.testing.assert_close(again.scores(ANSWERS), reward.scores(ANSWERS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(SCORE), "has no weights of a head that scores answers"),
        (
            lambda weights: weights.update({SCORE: torch.ones(2, 32)}),
            "gives 2 numbers, and has no reward.json that says what they weigh",
        ),
    ],
)
def test_one_that_cannot_score_says_so(
    change: Any, message: str, make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    made_elsewhere(tmp_path, make_model(), tokenizer, change)
    with pytest.raises(StageError) as caught:
        loaded(tmp_path / "judge", context_for(tmp_path))
    assert str(caught.value) == f"{tmp_path / 'judge'}: {message}"
    assert caught.value.hint == reward_model.HINT
