"""quantize: nf4, as far as a machine without a GPU and without bitsandbytes can tell."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llmpipe import stages
from llmpipe.errors import StageError
from llmpipe.settings import PathSource
from llmpipe.training import adapters, models, quantized
from llmpipe.training.ppo.shared import put
from tests.stages.test_lora import settings_for, trained
from tests.stages.tiny import context_for, passed, run_stage

NF4 = {"lora": {"r": 4}, "quantize": "nf4"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the stage believe in a GPU of the Ampere generation, and in bitsandbytes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(quantized, "find_spec", lambda _: object())


@pytest.mark.parametrize("kind", ["sft", "lora", "reward", "dpo", "kto", "rlhf-ppo", "rloo", "grpo"])
def test_without_a_gpu_it_is_refused_before_anything_is_loaded(kind: str, tmp_path: Path) -> None:
    nowhere = {"model": {"path": str(tmp_path / "none")}, "data": {"path": str(tmp_path / "none.jsonl")}}
    with pytest.raises(StageError) as caught:
        run_stage(kind, nowhere | NF4, context_for(tmp_path))
    assert str(caught.value) == "quantize: nf4 keeps the model in 4 bits, which is for CUDA GPUs, and none is here"
    assert caught.value.hint == "leave out quantize:; lora: itself works on this machine"


@pytest.mark.usefixtures("gpu")
def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(quantized, "find_spec", asked.append)
    with pytest.raises(StageError) as caught:
        quantized.loading(stages.load("dpo").Settings.model_validate({"kind": "dpo", **NF4}))
    assert str(caught.value) == "quantize: nf4 needs bitsandbytes, which is not installed"
    assert caught.value.hint == "pip install 'llmpipe[qlora]'"
    assert asked == ["bitsandbytes"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("precision", "generation", "dtype"),
    [("auto", 8, torch.bfloat16), ("auto", 7, torch.float16), ("fp32", 8, torch.float32), ("fp16", 8, torch.float16)],
)
def test_what_transformers_is_told(
    precision: str, generation: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (generation, 0))
    monkeypatch.setenv("LOCAL_RANK", "1")
    settings = stages.load("dpo").Settings.model_validate({"kind": "dpo", "precision": precision, **NF4})
    told = quantized.loading(settings)
    config = told.pop("quantization_config")
    assert told == {"device_map": {"": 1}}
    assert isinstance(config, BitsAndBytesConfig) and config.load_in_4bit and not config.load_in_8bit
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == dtype
    assert quantized.loading(settings.model_copy(update={"quantize": None})) == {}


def test_transformers_still_takes_it() -> None:
    wanted = {"load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"}
    assert wanted <= set(inspect.signature(BitsAndBytesConfig.__init__).parameters)
    with pytest.raises(TypeError):
        BitsAndBytesConfig(load_in_4bit="yes")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `from_pretrained` was told; models are loaded in full, and say that they are in 4 bits."""
    seen: list[dict[str, Any]] = []
    real = AutoModelForCausalLM.from_pretrained

    def in_full(folder: Any, **told: Any) -> Any:
        seen.append(dict(told))
        config = told.pop("quantization_config", None)
        told.pop("device_map", None)
        model = real(folder, **told)
        if config is not None:
            model.config.quantization_config = config
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", in_full)
    monkeypatch.setattr(quantized, "loading", lambda settings: {} if settings.quantize is None else TOLD)
    return seen


TOLD = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True), "device_map": {"": 0}}


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_a_stage_reads_its_model_in_4_bits_and_compares_it_with_nothing(
    kind: str, make_model: Any, tokenizer: Any, tmp_path: Path, loads: list[dict[str, Any]]
) -> None:
    given = settings_for(tmp_path, make_model, tokenizer)
    given |= {"data": {"builtin": "storyworld", "rows": 24}, "trainer": {"max_steps": 1}}
    result = run_stage(kind, given | NF4, context_for(tmp_path))
    assert passed(result.gates) & {"adapter-is-finite", "adapter-merges"} == {"adapter-is-finite"}
    assert len(loads) == (1 if kind == "sft" else 2)
    in_4_bits = loads[:1] if kind == "reward" else loads  # dpo's reference too; a reward model is read back in full
    assert all(told.items() >= TOLD.items() and told["dtype"] == torch.float32 for told in in_4_bits)


@pytest.mark.usefixtures("loads")
def test_nothing_is_merged_into_4_bits(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    given = settings_for(tmp_path, make_model, tokenizer) | {"data": {"builtin": "storyworld", "rows": 24}}
    given |= {"trainer": {"max_steps": 1}}
    first = trained(given | {"lora": {"r": 4, "trainable_token_indices": None}}, context_for(tmp_path / "one"))
    source = PathSource.model_validate({"path": str(first)})
    assert adapters.begin(source, {"r": 4}, context_for(tmp_path / "a"), TOLD).folder == first
    with pytest.raises(StageError) as caught:
        adapters.begin(source, {"r": 8}, context_for(tmp_path / "b"), TOLD)
    assert str(caught.value) == (
        "the adapter adapter would have to be merged into a model in 4 bits: its r is 4, and 8 is asked for"
    )
    assert caught.value.hint == "leave out quantize:, or train that adapter further, with the options that it has"
    further = given | {"lora": {"r": 2}, "model": {"path": str(first)}}
    second = trained(further, context_for(tmp_path / "two"))  # on the first one, merged
    with pytest.raises(StageError, match="the model is an adapter on another one"):
        adapters.begin(PathSource.model_validate({"path": str(second)}), {"r": 2}, context_for(tmp_path / "c"), TOLD)
    model, _ = models.load(source, context_for(tmp_path / "d"))  # a later stage has it in full
    assert not quantized.is_quantized(model)


def test_an_adapter_that_is_not_finite_is_noticed(make_model: Any) -> None:
    policy = put(make_model(), {"r": 4}, None)
    policy.get_base_model().config.quantization_config = TOLD["quantization_config"]
    assert [(gate.name, gate.passed) for gate in adapters.gates(policy)] == [
        ("base-unchanged", True),
        ("adapter-is-finite", True),
    ]
    with torch.no_grad():
        next(weight for weight in policy.parameters() if weight.requires_grad)[0, 0] = torch.nan
    assert [gate.passed for gate in adapters.gates(policy)] == [True, False]


def test_a_model_in_full_is_not_in_4_bits(make_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    models.save(make_model(), tokenizer, tmp_path / "m")
    model, _ = models.load(PathSource.model_validate({"path": str(tmp_path / "m")}), context_for(tmp_path))
    assert not quantized.is_quantized(model)
