"""The way every training stage takes through its trainer: resume, train, measure, keep the best, stop when asked.

`Measured` is mixed into Hugging Face trainers; `fit` drives one to its end.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_model
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llmpipe.artifact import read_json, write_json
from llmpipe.checkpoints import rotate, spoilt
from llmpipe.context import Context
from llmpipe.errors import DivergedError, StageError, StoppedError
from llmpipe.settings import TrainingSettings
from llmpipe.training import checkpoint, rehearsal, replay
from llmpipe.training.packing import IGNORED

PROGRESS_EVERY_S = 0.25


class Measured(replay.Remembers):
    """Mixed into a Trainer: stops before a non-finite step, and measures held-out loss by the token.

    Trainer's own evaluation averages the means of batches, which weighs tokens unequally, and its per-step count of
    floating-point operations walks all parameters, which costs a small model several percent.
    """

    tokens_seen = 0
    args: Any
    state: Any
    control: Any
    model: Any
    eval_dataset: Any
    data_collator: Any
    callback_handler: Any
    log: Any

    def floating_point_ops(self, _inputs: dict[str, Any]) -> int:
        """Count nothing; tokens per second say what a user wants to know."""
        return 0

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward; a loss that is not finite ends the run before the optimizer uses it."""
        self.tokens_seen += inputs["input_ids"].numel() if "input_ids" in inputs else 0  # of prompts, in compute_loss
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self._stay_finite("loss", loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Look at the gradient as Trainer does before each step: a finite loss can have one that is not."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        if norm is not None and not self.args.fp16:  # fp16's loss scaler expects overflows, and skips those steps
            self._stay_finite("gradient", torch.as_tensor(norm))
        return norm

    def _stay_finite(self, what: str, value: torch.Tensor) -> None:
        if not torch.isfinite(value):
            raise DivergedError(
                f"the {what} became {value.item()} in step {self.state.global_step + 1}; "
                "the weights were not changed by it",
                hint="lower trainer.learning_rate, or raise trainer.warmup_steps; the last checkpoint is kept",
            )

    def shown(self, loss: float) -> str:
        """Write what decides on the best checkpoint for people."""
        return f"held-out loss {loss:.4f}"

    def losses(self, loss: float) -> dict[str, float]:
        """Name the held-out loss, in nats per token, and what follows from it."""
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the mean loss of all held-out tokens in nats."""
        loss = self.held_out_loss()
        metrics = {f"eval_{name}": value for name, value in self.losses(loss).items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return nats per held-out token; with several processes each takes its share of the rows."""
        args, data = self.args, self.eval_dataset
        was_training = self.model.training
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=args.device)
        indices, size = range(args.process_index, len(data), args.world_size), args.per_device_eval_batch_size
        for first in range(0, len(indices), size):
            rows = data.__getitems__(list(indices[first : first + size]))
            batch = {key: value.to(args.device) for key, value in self.data_collator(rows).items()}
            loss, count = self.batch_loss(batch)
            if count:
                total += torch.stack([loss.double() * count, count.double()]).to(total)
        if args.world_size > 1:
            dist.all_reduce(total)
        self.model.train(was_training)
        return float(total[0] / total[1]) if total[1] else math.nan

    def batch_loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of a batch and how many tokens it is the mean of."""
        loss: torch.Tensor = self.model(**batch, use_cache=False).loss
        return loss, (batch["labels"][:, 1:] != IGNORED).sum()


@dataclass
class Progress:
    """What has to survive an interruption beside the trainer's own state; saved in each checkpoint."""

    loss_before: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    worse_in_a_row: int = 0
    tokens_seen: int = 0


class Flow(TrainerCallback):
    """Reports, marks checkpoints complete, tracks the best one, stops early or on request."""

    def __init__(
        self, trainer: Any, ctx: Context, settings: TrainingSettings, *, bytes_per_token: float | None
    ) -> None:
        self.trainer, self.ctx, self.settings = trainer, ctx, settings
        self.bytes_per_token = bytes_per_token
        self.progress = Progress()
        self.stopped: str | None = None
        self.shown_at = self.begun = time.monotonic()
        self.first_step = self.first_tokens = 0

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Start the clock that speed and time left are read from."""
        self.begun, self.first_step = time.monotonic(), state.global_step
        self.first_tokens = self.trainer.tokens_seen

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show progress, and turn a request to stop into a checkpoint and an end."""
        if self._asked_to_stop(args):
            control.should_save = control.should_training_stop = True
        now = time.monotonic()
        if now - self.shown_at >= PROGRESS_EVERY_S:
            self.shown_at = now
            self.ctx.progress(step=state.global_step, max_steps=state.max_steps, **self._speed(state))

    def _asked_to_stop(self, args: TrainingArguments) -> bool:
        """Agree over all processes: one that stops alone leaves the others waiting for ever."""
        how = self.ctx.stop_requested()
        if args.world_size > 1:
            flag = torch.tensor([["interrupt", "terminate"].index(how) + 1 if how else 0], device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            how = (None, "interrupt", "terminate")[int(flag.item())]
        self.stopped = self.stopped or how
        return self.stopped is not None

    def _speed(self, state: TrainerState) -> dict[str, float]:
        elapsed = max(time.monotonic() - self.begun, 1e-9)
        per_step = elapsed / max(1, state.global_step - self.first_step)
        tokens = (self.trainer.tokens_seen - self.first_tokens) * self.trainer.args.world_size
        return {"tokens_per_s": tokens / elapsed, "seconds_left": per_step * (state.max_steps - state.global_step)}

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Pass numbers on to metrics.jsonl under names that say what they are."""
        logs = {key.replace("eval_", "held_out_", 1): value for key, value in (logs or {}).items()}
        if "train_runtime" in logs:
            return  # Trainer's closing line; the manifest says it better
        if "held_out_loss" in logs and self.bytes_per_token:
            logs["held_out_bits_per_byte"] = logs["held_out_loss"] / math.log(2) / self.bytes_per_token
        speed = {} if "held_out_loss" in logs else self._speed(state)
        self.ctx.log({"step": state.global_step, "max_steps": state.max_steps, **logs, **speed})

    def on_evaluate(self, _args: Any, state: TrainerState, control: TrainerControl, metrics: Any, **_: Any) -> None:
        """Save a checkpoint that is better than all before; stop when none was for long enough."""
        progress = self.progress
        if progress.best_loss is None or metrics["eval_loss"] < progress.best_loss:
            progress.best_loss, progress.best_step, progress.worse_in_a_row = metrics["eval_loss"], state.global_step, 0
            control.should_save = control.should_save or self.settings.keep == "best"
            return
        progress.worse_in_a_row += 1
        patience = self.settings.early_stopping
        if patience and progress.worse_in_a_row >= patience:
            best = f"step {progress.best_step}"
            self.ctx.say(f"stopped early: {patience} evaluations in a row were no better than {best}")
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint complete once every process has written its part; drop the ones it replaces."""
        if args.world_size > 1:
            dist.barrier()
        if args.process_index == 0:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.progress.tokens_seen = self.trainer.tokens_seen
            write_json(folder / "progress.json", vars(self.progress))
            checkpoint.mark(folder, self.ctx, step=state.global_step, processes=args.world_size)
            keep = {state.global_step} | ({self.progress.best_step} if self.settings.keep == "best" else set())
            rotate(Path(args.output_dir), keep=keep)


def fit(
    trainer: Any, ctx: Context, settings: TrainingSettings, *, bytes_per_token: float | None = None
) -> dict[str, Any]:
    """Train from the newest complete checkpoint to the end, and leave the kept weights in the model.

    Returns the stage's metrics: losses in nats per token, `_before` measured on the model as it came.

    Raises:
        StoppedError: a signal asked for it; the state is saved.
        DivergedError: a loss was not finite.
    """
    flow = Flow(trainer, ctx, settings, bytes_per_token=bytes_per_token)
    for unwanted in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(unwanted)
    trainer.add_callback(flow)
    if ctx.is_rehearsal:
        rehearsal.watch(trainer, ctx, settings)
    trainer.model.config.use_cache = False  # with it, packed documents leak into each other without a word
    found = checkpoint.usable(trainer, ctx)
    measured = len(trainer.eval_dataset or ()) > 0
    if found:
        step, folder = found[-1]
        flow.progress = Progress(**(read_json(folder / "progress.json") or {}))
        trainer.tokens_seen = flow.progress.tokens_seen
        ctx.rewind(step)
        ctx.say(f"resuming from step {step}")
    elif measured:
        ctx.progress(doing="measuring the model as it comes")
        flow.progress.loss_before = trainer.held_out_loss()
    if found and _is_over(trainer, found[-1][1], flow):
        _restore(trainer, found[-1][1])
    else:
        with checkpoint.explained(trainer, ctx):
            trainer.train(resume_from_checkpoint=str(found[-1][1]) if found else None)
    if flow.stopped:
        step = trainer.state.global_step
        raise StoppedError(
            f"stopped after step {step}, which is saved",
            hint="the same command goes on",
            interrupted=flow.stopped == "interrupt",
        )
    replay.check(trainer, ctx)
    flow.begun += ctx.gates_s  # which say nothing about speed
    loss = _keep_best(trainer, ctx, flow) if measured else None
    return _metrics(trainer, flow, loss)


def _is_over(trainer: Any, checkpoint: Path, flow: Flow) -> bool:
    """Whether a checkpoint was the last one of its run: Trainer 5.23 would train on for one more step."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else state.max_steps
    patience = flow.settings.early_stopping
    return state.global_step >= steps or bool(patience and flow.progress.worse_in_a_row >= patience)


def _restore(trainer: Any, checkpoint: Path) -> None:
    """Put a checkpoint's weights and counts into a trainer that has nothing left to train."""
    trainer._load_from_checkpoint(str(checkpoint))  # as train would: PPO's holds more than weights
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _keep_best(trainer: Any, ctx: Context, flow: Flow) -> float:
    """Measure the final weights; put the best checkpoint's in their place where those were better."""
    final, best = trainer.held_out_loss(), flow.progress
    if flow.settings.keep == "best" and best.best_loss is not None and best.best_loss < final:
        folder = ctx.checkpoints / f"checkpoint-{best.best_step}"
        if spoilt(folder):
            raise StageError(f"the best checkpoint {folder} is gone or broken", hint="llmpipe run --force this stage")
        load_model(trainer.model, folder / "model.safetensors", strict=False)  # tied weights are stored once
        ctx.say(f"kept step {best.best_step}, whose {trainer.shown(best.best_loss)} was the best")
        return best.best_loss
    return final


def _metrics(trainer: Any, flow: Flow, loss: float | None) -> dict[str, Any]:
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "train_loss": history[-1] if history else None,
        "train_loss_first": history[0] if history else None,
        "tokens": trainer.tokens_seen * trainer.args.world_size,
        "tokens_per_s": round(flow._speed(trainer.state)["tokens_per_s"]),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }
    if loss is not None:
        metrics |= {f"held_out_{name}": value for name, value in trainer.losses(loss).items()}
        metrics |= {"held_out_loss_before": flow.progress.loss_before, "best_step": flow.progress.best_step}
    return metrics
