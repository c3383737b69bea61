"""A planted fault for each gate: on what was written, where that is what it looks at, or on what was learned from.

The faults of base-unchanged, reference-unchanged and adapter-is-finite are in test_lora.py, test_dpo_trainer.py and
test_quantized.py, that of a template without an end token in test_boundaries.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from llmpipe.artifact import Gate
from llmpipe.gates import REASONS, failure
from llmpipe.stages import tokenizer as tokenizer_stage
from llmpipe.training import (
    adapters,
    chat,
    class_trainer,
    flow,
    models,
    objectives,
    replay,
    reward_model,
    reward_trainer,
    saved,
)
from llmpipe.training.packing import PackedTokens, write_tokens
from llmpipe.training.ppo.shared import put
from tests.stages.tiny import context_for, passed, run_stage

WEIGHTS = "model.safetensors"
TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2}


def failed(gates: list[Gate]) -> dict[str, str | None]:
    """Return what was measured by the gates that failed."""
    return {gate.name: gate.measured for gate in gates if not gate.passed}


def change(file: Path, edit: Callable[[Any], Any]) -> None:
    """Change weights or JSON on the disk."""
    if file.suffix == ".json":
        content = json.loads(file.read_text(encoding="utf-8"))
        edit(content)
        file.write_text(json.dumps(content), encoding="utf-8")
    else:
        weights = load_file(file)
        edit(weights)
        save_file(weights, file, metadata={"format": "pt"})


def flip(weights: dict[str, torch.Tensor], name: str = "model.layers.0.mlp.up_proj.weight") -> None:
    """Change one number."""
    weights[name][0, 0] += 1


def test_a_failure_says_what_was_found_why_it_matters_and_what_to_do() -> None:
    found = [Gate(name="generation-stops", passed=False, why=REASONS["generation-stops"].why, measured="stops at a")]
    error = failure([*found, Gate(name="pad-is-not-end", passed=False, why=REASONS["pad-is-not-end"].why)])
    assert str(error) == (
        "gate 'generation-stops' failed (stops at a): a saved generation config without the end token never stops, "
        "and one that stops at padding answers nothing\n"
        "gate 'pad-is-not-end' failed: what skips padding would skip the end as well: answers that never stop, or "
        "stop at once"
    )
    assert error.hint == (
        "look at eos_token_id and pad_token_id in generation_config.json of the model that it began from; "
        'give padding a token of its own: "pad_token" in tokenizer_config.json of the model'
    )


# --- what was saved


@pytest.fixture
def written(make_model: Any, tokenizer: Any, tmp_path: Path) -> tuple[PreTrainedModel, Any, Path]:
    """A model whose embeddings are tied, its tokenizer, and the folder where both were saved."""
    model = make_model(tie_word_embeddings=True)
    models.save(model, tokenizer, tmp_path / "model")
    return model, tokenizer, tmp_path / "model"


def test_what_is_whole_passes(written: Any) -> None:
    gates = saved.gates(*written)
    assert passed(gates) == {"weights-reload", "tied-embeddings", "template-travels", "generation-stops"}
    assert [gate.measured for gate in gates] == ["off by 0", None, None, "stops at <|end|>"]


@pytest.mark.parametrize(
    ("edit", "measured"),
    [
        (flip, "model.layers.0.mlp.up_proj.weight differs"),
        (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda weights: weights.update(more=torch.ones(1)), "more is unexpected"),
    ],
    ids=["another number", "one is missing", "one too many"],
)
def test_weights_that_are_not_those_that_were_trained(edit: Any, measured: str, written: Any) -> None:
    change(written[2] / WEIGHTS, edit)
    assert failed(saved.gates(*written))["weights-reload"] == measured


def test_weights_that_are_cut_off(written: Any) -> None:
    file = written[2] / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    assert "weights-reload" in failed(saved.gates(*written))


def test_the_same_weights_in_another_shape(written: Any) -> None:
    """As of a configuration that lost a key: the weights are those that were trained, and the logits are not."""
    change(written[2] / "config.json", lambda config: config.update(rms_norm_eps=1.0))
    (measured,) = failed(saved.gates(*written)).values()
    assert measured is not None and float(measured.removeprefix("off by ")) > 0.01


def test_an_adapter_that_is_not_the_one_that_was_trained(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    policy = put(make_model(), {"r": 4}, None)
    begun = adapters.Beginning(policy, tokenizer, None, "m", None)
    adapters.save_policy(policy, begun, tmp_path)
    assert passed(saved.gates(policy, tokenizer, tmp_path)) == {
        "weights-reload",
        "template-travels",
        "generation-stops",
    }
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    change(tmp_path / "adapter_model.safetensors", lambda weights: flip(weights, name))
    assert failed(saved.gates(policy, tokenizer, tmp_path)) == {"weights-reload": f"{name} differs"}


def test_an_adapter_that_is_another_one_when_it_is_merged(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = put(make_model(), {"r": 4}, None)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert passed([adapters.merge_gate(policy)])
    layer = policy.base_model.model.model.layers[0].mlp.up_proj
    delta = layer.get_delta_weight
    monkeypatch.setattr(layer, "get_delta_weight", lambda adapter: 2 * delta(adapter))
    assert failed([adapters.merge_gate(policy)]).keys() == {"adapter-merges"}


def test_embeddings_that_came_apart_on_the_disk(written: Any) -> None:
    change(written[2] / WEIGHTS, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}))
    assert failed(saved.gates(*written)) == {"weights-reload": "lm_head.weight differs", "tied-embeddings": None}


def test_embeddings_that_came_apart_in_memory(written: Any) -> None:
    model, tokenizer, folder = written
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    models.save(model, tokenizer, folder)
    assert failed(saved.gates(model, tokenizer, folder)) == {"tied-embeddings": None}


def test_a_template_that_is_another_one_in_the_chat(written: Any) -> None:
    file = written[2] / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8") + "\n\nhello", encoding="utf-8")
    assert failed(saved.gates(*written)) == {"template-travels": None}


def test_a_tokenizer_that_begins_texts_in_another_way(written: Any) -> None:
    change(written[2] / "tokenizer.json", lambda content: content.update(post_processor=None))
    assert failed(saved.gates(*written)) == {"template-travels": None}


@pytest.mark.parametrize(
    ("ends", "measured"),
    [([0, 2], "stops at <|pad|>, <|end|>"), (None, "stops at nothing"), (5, "stops at <|user|>")],
    ids=["padding among them", "none", "another one"],
)
def test_a_generation_config_that_does_not_stop_where_it_should(ends: Any, measured: str, written: Any) -> None:
    end = written[1].convert_tokens_to_ids("<|user|>") if ends == 5 else ends
    change(written[2] / "generation_config.json", lambda config: config.update(eos_token_id=end))
    assert failed(saved.gates(*written)) == {"generation-stops": measured}


def test_a_generation_config_that_was_not_saved(written: Any) -> None:
    (written[2] / "generation_config.json").unlink()
    assert failed(saved.gates(*written)).keys() == {"generation-stops"}


# --- what it was learned from


def test_documents_without_an_end(tokenizer: Any, tmp_path: Path) -> None:
    write_tokens(iter([[1, 40, 41, 42], [1, 43, 44, 45]]), tmp_path / "t", vocab_size=300)
    rows = PackedTokens(tmp_path / "t", block=4, vocab_size=300, bos=1, eos=2, documents=2)
    assert failed(objectives.learned(rows, tokenizer, "causal")) == {"end-is-learned": "0% of the examples"}


def test_an_end_that_is_masked_with_the_padding(tokenizer: Any, tmp_path: Path) -> None:
    class Masked(PackedTokens):
        def __getitems__(self, indices: Any) -> Any:
            batch = super().__getitems__(indices)
            return batch | {"labels": batch["labels"].masked_fill(batch["labels"] == 2, -100)}

    write_tokens(iter([[1, 40, 41, 2], [1, 43, 44, 2]]), tmp_path / "t", vocab_size=300)
    options: dict[str, Any] = {"block": 4, "vocab_size": 300, "bos": 1, "eos": 2, "documents": 2}
    assert passed(objectives.learned(PackedTokens(tmp_path / "t", **options), tokenizer, "causal"))
    rows = Masked(tmp_path / "t", **options)
    assert failed(objectives.learned(rows, tokenizer, "causal")) == {"end-is-learned": "0% of the examples"}


def test_packed_rows_that_leak(make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    assert objectives.gate(model, tokenizer, "causal").passed
    monkeypatch.setitem(objectives.READY, "causal", lambda _, batch: {"input_ids": batch["input_ids"]})
    assert failed([objectives.gate(model, tokenizer, "causal")]) == {"packed-documents-apart": None}


@pytest.fixture
def settings(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    """What a stage on a tiny model is asked for."""
    models.save(make_model(context=192), tokenizer, tmp_path / "m")
    model = {"path": str(tmp_path / "m")}
    return {"model": model, "data": {"builtin": "storyworld", "rows": 24}, "trainer": TRAINER}


def test_a_mask_that_is_empty(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_spans", lambda *_: [])
    found = failed(run_stage("sft", settings, context_for(tmp_path)).gates)
    assert found == {"something-learned": "0 tokens", "end-is-learned": "0% of the examples"}


def test_padding_that_is_the_end(
    settings: dict[str, Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "m")
    monkeypatch.setattr(models, "mend_pad", lambda *_: None)
    found = failed(run_stage("dpo", settings, context_for(tmp_path)).gates)
    assert found == {"pad-is-not-end": None, "generation-stops": "stops at <|end|>"}


def test_a_pad_that_begins_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_stage, "BOS", tokenizer_stage.PAD)
    data = {"data": {"builtin": "storyworld", "rows": 24}, "algorithm": "byte"}
    assert failed(run_stage("tokenizer", data, context_for(tmp_path)).gates) == {"pad-bos-end-distinct": None}


def test_a_head_that_is_not_saved(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = reward_model.save

    def without_a_head(reward: Any, folder: Path, *given: Any) -> None:
        save(reward, folder, *given)
        change(folder / WEIGHTS, lambda weights: weights["score.weight"].zero_())

    monkeypatch.setattr(reward_model, "save", without_a_head)
    settings["trainer"] = TRAINER | {"learning_rate": 1e-2}
    found = failed(run_stage("reward", settings, context_for(tmp_path)).gates)
    assert found.keys() == {"head-reloads", "weights-reload"}
    assert found["weights-reload"] == "score.weight differs"


def test_answers_without_an_end_and_a_head_that_no_pair_trains(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = reward_trainer.gates

    def of_others(trainer: Any, again: Any, train: Any, folder: Path, *, context: int) -> list[Gate]:
        others = [type(pair)(pair.rejected[:-1], pair.rejected[:-1], pair.prompt, 1, None, True) for pair in train]
        return gates(trainer, again, others, folder, context=context)

    monkeypatch.setattr(reward_trainer, "gates", of_others)
    found = failed(run_stage("reward", settings, context_for(tmp_path)).gates)
    assert found == {"answers-end": None, "every-head-learns": None, "something-learned": "0 pairs"}


def test_a_class_that_is_never_trained_on(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{'good' if n % 2 else 'bad'} {n},{n % 2}" for n in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    gates = class_trainer.gates

    def of_one_class(trainer: Any, folder: Path, texts: Any, train: Any, *, context: int) -> list[Gate]:
        change(folder / WEIGHTS, lambda weights: weights["score.weight"].zero_())
        return gates(trainer, folder, texts, [row for row in train if row.label], context=context)

    monkeypatch.setattr(class_trainer, "gates", of_one_class)
    settings["data"] = {"path": str(tmp_path / "t.csv")}
    found = failed(run_stage("classify", settings, context_for(tmp_path)).gates)
    assert found.keys() == {"head-reloads", "every-class-is-learned", "weights-reload"}


# --- checkpoints


@pytest.mark.parametrize("fault", ["flipped", "cut off", "not read"])
def test_a_checkpoint_that_cannot_be_gone_on_from(
    fault: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = replay.check

    def after_a_fault(trainer: Any, ctx: Any) -> None:
        file = ctx.checkpoints / "checkpoint-2" / WEIGHTS
        if fault == "flipped":
            change(file, lambda weights: weights["model.norm.weight"].mul_(2))
        elif fault == "cut off":
            size = file.stat().st_size
            file.write_bytes(b"\xff" * size)
        else:
            trainer._load_from_checkpoint = lambda *_: None
        check(trainer, ctx)

    monkeypatch.setattr(flow.replay, "check", after_a_fault)
    settings |= {"keep": "last"}  # a best one that is broken ends the stage before
    found = failed(run_stage("sft", settings, context_for(tmp_path)).gates)
    assert found.keys() == {"checkpoint-replays"}
    start = "SafetensorError: " if fault == "cut off" else "off by "
    assert str(found["checkpoint-replays"]).startswith(start)


def test_the_replay_leaves_everything_as_it_was(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for name in "ab":
        results.append(run_stage("sft", settings | {"dropout": 0.1}, context_for(tmp_path / name)))
        monkeypatch.setattr(flow.replay, "check", lambda trainer, _: setattr(trainer, "replayed", []))
    one, two = (load_file(tmp_path / name / "x" / "model" / WEIGHTS) for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    first, second = ({**result.metrics, "tokens_per_s": 0} for result in results)
    assert first == second
    assert {gate.name for gate in results[0].gates} - {gate.name for gate in results[1].gates} == {"checkpoint-replays"}
