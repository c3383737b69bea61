"""What a training stage promises: resumed equals uninterrupted, the best is kept, a bad loss changes nothing."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from llmpipe.checkpoints import complete_checkpoints
from llmpipe.errors import DivergedError, StoppedError
from llmpipe.stages.pretrain import Settings
from llmpipe.training import arguments, flow, objectives
from llmpipe.training.packing import IGNORED, PackedTokens, chunks, identity, write_tokens

ROWS = 40


def rows(folder, name: str, seed: int, count: int = ROWS):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 300, (count, 16), generator=generator).tolist()
    write_tokens(([1, *row[2:], 2] for row in ids), folder / name, vocab_size=300)
    return PackedTokens(folder / name, block=16, vocab_size=300, bos=1, eos=2, documents=count)


def trainer_of(ctx, model, *, held_out=None, **options):
    """Build the trainer the way the stage does, with few rows."""
    keys = {key: options.pop(key) for key in ("keep", "early_stopping") if key in options}
    settings = Settings.model_validate({"model": {"size": 1000}, "context": 16, "precision": "fp32", **keys})
    options = {"max_steps": 12, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **options}
    args = arguments.build(
        TrainingArguments, ctx, settings, options=options, stage_defaults={"learning_rate": 1e-2},
        rows=ROWS, row_tokens=16, measured=held_out is not None, width=32,
    )  # fmt: skip
    data = rows(ctx.dir, "train.tokens", 0)
    trainer = objectives.PretrainTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=held_out, data_collator=identity
    )
    return trainer, settings


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def fitted(ctx, make_model, stop_at=math.inf) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train until the end or a step, with dropout, which draws from the generator that has to be restored."""
    model = make_model(attention_dropout=0.1)
    trainer, settings = trainer_of(ctx, model)
    ctx.stop_requested = lambda: "interrupt" if trainer.state.global_step >= stop_at else None
    return flow.fit(trainer, ctx, settings), weights(model)


def test_resumed_equals_uninterrupted_bit_for_bit(ctx, make_model) -> None:
    """Stopped after the first step, in the middle, and before the last."""
    whole, wanted = fitted(ctx, make_model)
    lines = metrics_steps(ctx)
    for stop_at in (1, 5, 11):
        shutil.rmtree(ctx.checkpoints)
        (ctx.dir / "metrics.jsonl").unlink()
        with pytest.raises(StoppedError, match=f"stopped after step {stop_at}, which is saved") as stopped:
            fitted(ctx, make_model, stop_at)
        assert stopped.value.code == 130
        resumed, found = fitted(ctx, make_model)
        assert resumed["steps"] == whole["steps"] == 12
        assert same(found, wanted)
        assert metrics_steps(ctx) == lines


def metrics_steps(ctx) -> list[int]:
    text = (ctx.dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_a_request_to_terminate_can_be_resumed(ctx, make_model) -> None:
    trainer, settings = trainer_of(ctx, make_model())
    ctx.stop_requested = lambda: "terminate"
    with pytest.raises(StoppedError) as stopped:
        flow.fit(trainer, ctx, settings)
    assert stopped.value.code == 75
    assert [step for step, _ in complete_checkpoints(ctx.checkpoints)] == [1]


def test_a_loss_that_is_not_finite_changes_no_weight(ctx, make_model) -> None:
    model = make_model()
    trainer, settings = trainer_of(ctx, model)
    compute_loss, seen = trainer.compute_loss, []

    def spoiled(*args, **kwargs):
        seen.append(weights(model))
        loss = compute_loss(*args, **kwargs)
        return loss * math.nan if trainer.state.global_step == 3 else loss

    trainer.compute_loss = spoiled
    with pytest.raises(DivergedError, match="in step 4") as diverged:
        flow.fit(trainer, ctx, settings)
    assert diverged.value.code == 4
    assert same(weights(model), seen[-1])
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_the_best_checkpoint_is_the_output(ctx, make_model) -> None:
    model = make_model()
    held_out = rows(ctx.dir, "held_out.tokens", 1, 12)  # random tokens: training can only get worse at them
    trainer, settings = trainer_of(ctx, model, held_out=held_out, learning_rate=3e-2, eval_steps=2, max_steps=10)
    metrics = flow.fit(trainer, ctx, settings)
    log = [json.loads(line) for line in (ctx.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = {line["step"]: line["held_out_loss"] for line in log if "held_out_loss" in line}
    best = min(measured, key=measured.get)
    assert best < 10, "the last one is the best, so this proves nothing"
    assert metrics["best_step"] == best
    assert metrics["held_out_loss"] == pytest.approx(measured[best])
    assert trainer.held_out_loss() == pytest.approx(measured[best], abs=1e-6)
    saved = load_file(ctx.checkpoints / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(saved[name], weights(model)[name]) for name in saved)


def test_keep_last_and_early_stopping(ctx, make_model) -> None:
    held_out = rows(ctx.dir, "held_out.tokens", 1, 12)
    options = {"held_out": held_out, "learning_rate": 3e-2, "eval_steps": 1, "max_steps": 40}
    trainer, settings = trainer_of(ctx, make_model(), early_stopping=2, keep="last", **options)
    metrics = flow.fit(trainer, ctx, settings)
    assert metrics["steps"] == metrics["best_step"] + 2 < 40
    assert metrics["held_out_loss"] > min(
        e["held_out_loss"] for e in map(json.loads, open_log(ctx)) if "held_out_loss" in e
    )


def open_log(ctx) -> list[str]:
    return (ctx.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_held_out_loss_weighs_tokens_not_batches(ctx, make_model) -> None:
    model = make_model()
    ragged = [[1, *range(20, 20 + size), 2] for size in (3, 30, 5, 41, 2, 12, 9)]
    write_tokens(iter(ragged), ctx.dir / "ragged.tokens", vocab_size=300)
    held_out = PackedTokens(ctx.dir / "ragged.tokens", block=16, vocab_size=300, bos=1, eos=2, documents=7)
    trainer, _ = trainer_of(ctx, model, held_out=held_out, per_device_eval_batch_size=2)
    total = count = 0.0
    with torch.no_grad():
        for index in range(len(held_out)):
            batch = held_out.__getitems__([index])
            size = int((batch["labels"][:, 1:] != IGNORED).sum())
            total, count = total + float(model.eval()(**batch).loss) * size, count + size
    assert trainer.held_out_loss() == pytest.approx(total / count, rel=1e-5)


def test_accumulation_changes_nothing(ctx, make_model) -> None:
    """Eight rows at once and one row eight times give the same weights (huggingface/transformers#34191).

    With plain descent: Adam turns rounding in a gradient near zero into a whole step.
    """
    found = []
    for micro, passes in ((8, 1), (1, 8)):
        model = make_model()
        geometry = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": passes}
        trainer, settings = trainer_of(
            ctx, model, max_steps=4, save_strategy="no", optim="sgd", learning_rate=0.5, **geometry
        )
        flow.fit(trainer, ctx, settings)
        found.append(weights(model))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])
    assert not same(found[0], weights(make_model()))


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_scheduler_type": "linear"},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 4}},
    ],
    ids=lambda schedule: schedule["lr_scheduler_type"],
)
def test_learning_rate_schedules(ctx, make_model, schedule) -> None:
    trainer, settings = trainer_of(ctx, make_model(), warmup_steps=4, logging_steps=1, save_strategy="no", **schedule)
    flow.fit(trainer, ctx, settings)
    rates = [line["learning_rate"] for line in map(json.loads, open_log(ctx)) if "learning_rate" in line]
    assert rates[0] < rates[2] < rates[4] == pytest.approx(1e-2)  # warms up
    assert rates[-1] < 0.5 * rates[4]  # and decays
    if schedule["lr_scheduler_type"] == "warmup_stable_decay":
        assert rates[7] == rates[4]


def test_the_precision_is_measured_once(ctx, make_model) -> None:
    (ctx.dir / "precision.json").write_text('"bf16"', encoding="utf-8")
    trainer, _ = trainer_of(ctx, make_model())
    assert trainer.args.bf16, "a resumed run takes the precision that it began with"


def test_texts_are_encoded_in_lists_that_fit_into_memory() -> None:
    small, large = ["ab"] * 1200, ["x" * 400_000] * 5
    assert [len(chunk) for chunk in chunks(small)] == [512, 512, 176]
    assert [len(chunk) for chunk in chunks(large)] == [3, 2]
    assert [text for chunk in chunks([*small, *large]) for text in chunk] == [*small, *large]
