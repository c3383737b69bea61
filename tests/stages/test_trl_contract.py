"""The private and unusual surfaces of trl and transformers that llmpipe stands on are still there."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from llmpipe.errors import DivergedError
from llmpipe.settings import TRAINER_RESERVED, SupervisedSettings, TrainingSettings
from llmpipe.stages.sft import RESERVED
from llmpipe.training import arguments, flow, objectives
from llmpipe.training.packing import PackedTokens, identity, write_tokens

KEYS = {"stage_defaults": {}, "rows": 10, "row_tokens": 16, "width": 32}
SETTINGS = TrainingSettings(kind="sft", precision="fp32")


NAMES = ["create_model_card", "floating_point_ops", "_get_grad_norm", "training_step", "_prepare_inputs"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_overridden_exists(name) -> None:
    assert callable(getattr(SFTTrainer, name))
    assert name == "create_model_card" or callable(getattr(Trainer, name))


def test_trainer_hands_the_gradient_norm_on_before_the_step() -> None:
    source = inspect.getsource(Trainer)
    assert source.index("self._get_grad_norm(model, grad_norm=grad_norm)") < source.index("self.optimizer.step()")


def test_rows_are_left_as_they_are_when_trl_is_told_so() -> None:
    assert "skip_prepare_dataset" in inspect.getsource(SFTTrainer)
    assert "dataset_kwargs" in SFTConfig.__dataclass_fields__


def test_trl_still_turns_bf16_on_and_llmpipe_does_not(ctx) -> None:
    assert SFTConfig(output_dir=str(ctx.checkpoints), use_cpu=True).bf16 is True
    built = arguments.build(SFTConfig, ctx, SETTINGS, options={}, measured=False, **KEYS)
    assert (built.bf16, built.fp16) == (False, False)


@pytest.mark.parametrize(
    ("cls", "reserved"), [(TrainingArguments, TRAINER_RESERVED), (SFTConfig, RESERVED)], ids=["pretrain", "sft"]
)
def test_no_option_is_set_twice(cls, reserved, ctx) -> None:
    """Whatever is not reserved may be set by the user, so llmpipe must not also pass it by force."""
    free = {"eval_strategy": "epoch", "prediction_loss_only": False, "dataloader_pin_memory": False}
    assert not set(free) & set(reserved)
    built = arguments.build(cls, ctx, SETTINGS, options=free, measured=True, **KEYS)
    assert (built.eval_strategy, built.dataloader_pin_memory) == ("epoch", False)
    assert arguments.build(cls, ctx, SETTINGS, options=free, measured=False, **KEYS).eval_strategy == "no"


@pytest.mark.parametrize(("processes", "micro", "passes"), [(1, 8, 4), (2, 8, 2), (4, 8, 1)])
def test_batch_tokens_are_the_same_on_any_number_of_processes(processes, micro, passes, ctx, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    settings = SupervisedSettings(kind="sft", batch_tokens=2048, micro_batch_tokens=512)
    found = arguments.batch_geometry(settings, row_tokens=64, ctx=ctx)
    assert found == {"per_device_train_batch_size": micro, "gradient_accumulation_steps": passes}
    assert ctx.events[-1]["text"] == (f"a step of 2,048 tokens: 8 rows of 64 x {passes} passes x {processes} processes")


def test_measuring_takes_no_more_room_than_training(ctx) -> None:
    """`micro_batch_tokens` is what a user lowers to save memory; a large vocabulary makes held-out logits gigabytes."""
    settings = SupervisedSettings(kind="sft", batch_tokens=2048, micro_batch_tokens=512)
    keys = {**KEYS, "row_tokens": 64}
    built = arguments.build(TrainingArguments, ctx, settings, options={}, measured=True, **keys)
    assert built.per_device_eval_batch_size == built.per_device_train_batch_size == 8
    built = arguments.build(TrainingArguments, ctx, SETTINGS, options={}, measured=True, **keys)
    assert built.per_device_eval_batch_size == arguments.EVAL_TOKENS // 64


def trainer_of(ctx, model, **options) -> objectives.PretrainTrainer:
    write_tokens(([1, *range(10, 24), 2] for _ in range(16)), ctx.dir / "t", vocab_size=300)
    data = PackedTokens(ctx.dir / "t", block=16, vocab_size=300, bos=1, eos=2, documents=16)
    options = {"max_steps": 4, "per_device_train_batch_size": 2, **options}
    args = arguments.build(TrainingArguments, ctx, SETTINGS, options=options, measured=True, **KEYS)
    return objectives.PretrainTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, data_collator=identity
    )


def test_evaluation_comes_before_the_checkpoint(ctx, make_model) -> None:
    """The best step has to be known when a checkpoint is marked."""
    seen: list[str] = []

    class Watch(TrainerCallback):
        def on_evaluate(self, *_, **__) -> None:
            seen.append("evaluate")

        def on_save(self, *_, **__) -> None:
            seen.append("save")

    trainer = trainer_of(ctx, make_model(context=16), eval_steps=2)
    trainer.add_callback(Watch())
    flow.fit(trainer, ctx, SETTINGS)
    assert seen == ["evaluate", "save", "evaluate", "save"]


def test_a_gradient_that_is_not_finite_changes_no_weight(ctx, make_model) -> None:
    """The loss is fine here; only what flows back is not."""
    model = make_model(context=16)
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * torch.inf if len(calls) == 3 else gradient

    kept: list[torch.Tensor] = []

    class Keep(TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            kept.append(model.model.norm.weight.detach().clone())

    model.model.norm.weight.register_hook(spoil)
    trainer = trainer_of(ctx, model)
    trainer.add_callback(Keep())
    with pytest.raises(DivergedError) as error:
        flow.fit(trainer, ctx, SETTINGS)
    assert error.value.code == 4
    assert str(error.value).startswith("the gradient became ")
    assert str(error.value).endswith(" in step 3; the weights were not changed by it")
    assert len(kept) == 2 and torch.equal(model.model.norm.weight, kept[-1])


def test_transformers_tells_by_a_configuration_whether_there_is_a_masked_model() -> None:
    """`models.kind_of` asks its private mapping about models that were saved without a head."""
    assert BertConfig in AutoModelForMaskedLM._model_mapping
    assert LlamaConfig not in AutoModelForMaskedLM._model_mapping
