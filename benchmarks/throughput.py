"""Training throughput of `pretrain` against a bare PyTorch loop: same model, batch, optimizer, clipping, schedule.

    python benchmarks/throughput.py [--rounds 5]

The two take turns, a round of each after the other, in one process; tokens per second are medians over rounds. The
loop's batches are prepared before its clock starts; llmpipe fetches, checks, logs and reports as in a real run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, get_cosine_schedule_with_warmup

from llmpipe.artifact import StepRecord
from llmpipe.context import Context
from llmpipe.stages.pretrain import Settings
from llmpipe.training import arguments, flow, objectives, shapes
from llmpipe.training.packing import PackedTokens, identity

VOCAB = 1024
CASES = {"0.5 M": (500_000, 24, 64, 120), "4 M": (4_000_000, 16, 128, 30), "25 M": (25_000_000, 8, 256, 8)}
"""Size → (parameters, rows, tokens in a row, steps of a round)."""
WARM_UP = 5


def make_model(size: int, context: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = shapes.dial(size, vocab_size=VOCAB)
    config = LlamaConfig(vocab_size=VOCAB, max_position_embeddings=context, **shape)
    config.use_cache = False
    return LlamaForCausalLM(config)


def make_rows(folder: Path, rows: int, context: int) -> PackedTokens:
    """Random tokens in documents of 40, so that rows are cut as in real text."""
    tokens = np.random.default_rng(0).integers(3, VOCAB, rows * context).astype(np.uint16)
    tokens[::40] = 1
    tokens.tofile(folder / "tokens")
    return PackedTokens(folder / "tokens", block=context, vocab_size=VOCAB, bos=1, eos=2, documents=len(tokens) // 40)


def bare_loop(model: LlamaForCausalLM, data: PackedTokens, rows: int, steps: int) -> float:
    """Return seconds for `steps` after the warm-up."""
    batches = [data.__getitems__(range(step * rows, (step + 1) * rows)) for step in range(steps + WARM_UP)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, steps + WARM_UP)
    model.train()
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            begun = time.perf_counter()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return time.perf_counter() - begun


class Clock(flow.TrainerCallback):
    """Times the steps after the warm-up."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == WARM_UP:
            self.begun = time.perf_counter()
        if state.global_step == state.max_steps:
            self.seconds = time.perf_counter() - self.begun


def llmpipe_loop(model: LlamaForCausalLM, data: PackedTokens, rows: int, steps: int, folder: Path) -> float:
    """Return seconds for `steps` after the warm-up, with all that `pretrain` does around them."""
    settings = Settings.model_validate(
        {
            "model": {"size": 1000},
            "context": data.block,
            "precision": "fp32",
            "trainer": {
                "max_steps": steps + WARM_UP,
                "per_device_train_batch_size": rows,
                "save_strategy": "no",
                "learning_rate": 1e-3,
                "lr_scheduler_type": "cosine",
            },
        }
    )
    record = StepRecord(name="b", kind="pretrain", stage_version=1, fingerprint="", seed=0, settings={}, inputs=[])
    (folder / "b").mkdir(exist_ok=True)
    ctx = Context(run_dir=folder, step=record, emit=lambda event: None)
    args = arguments.build(
        TrainingArguments, ctx, settings, options=settings.trainer, stage_defaults={"weight_decay": 0.1},
        rows=len(data), row_tokens=data.block, measured=False, width=model.config.hidden_size,
    )  # fmt: skip
    trainer = objectives.PretrainTrainer(model=model, args=args, train_dataset=data, data_collator=identity)
    clock = Clock()
    trainer.add_callback(clock)
    flow.fit(trainer, ctx, settings)
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=CASES)
    options = parser.parse_args()
    print(f"{'size':>6}  {'bare tok/s':>10}  {'llmpipe':>10}  {'ratio':>6}  {'ratios by round'}")
    for name, (size, rows, context, steps) in CASES.items():
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            data = make_rows(folder, rows * (steps + WARM_UP), context)
            bare, ours = [], []
            for _ in range(options.rounds):
                bare.append(bare_loop(make_model(size, context), data, rows, steps))
                ours.append(llmpipe_loop(make_model(size, context), data, rows, steps, folder))
        tokens = rows * context * steps
        ratios = [b / o for b, o in zip(bare, ours, strict=True)]
        speed = [tokens / statistics.median(seconds) for seconds in (bare, ours)]
        shown = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(
            f"{name:>6}  {speed[0]:>10,.0f}  {speed[1]:>10,.0f}  {statistics.median(ratios):>6.3f}  {shown}", flush=True
        )


if __name__ == "__main__":
    main()
