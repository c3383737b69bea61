"""What a training stage costs, from a few steps of it: `llmpipe plan --calibrate` runs each stage for real that far.

Everything is the stage's own: its data, its model, its batches, its trainer. Only the number of steps is cut, passes
are not accumulated, and held-out loss is taken on part of the rows. `rehearsal.json` in the stage's folder then says
what one pass, one step, one evaluation and one checkpoint take, and how many of them the whole stage has; `estimate`
puts them together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmpipe.artifact import write_json
from llmpipe.checkpoints import complete_checkpoints
from llmpipe.context import REHEARSAL, Context
from llmpipe.settings import TrainingSettings
from llmpipe.training.arguments import world_size

ENOUGH_S = 4.0
"""Of training, after the first step: many steps where they are short, for one of them says little."""
FEWEST = 2  # steps after the first, or rollouts
EVALUATION_BATCHES = 8


@dataclass
class Costs:
    """What was measured in seconds, and the counts that it has to be multiplied by; see `estimate`."""

    steps: int = 0
    """Optimizer steps of the whole stage."""
    steps_per_epoch: int | None = None
    """None where the stage goes by rollouts."""
    epochs: float = 0.0
    eval_steps: int | None = None
    save_steps: int | None = None
    passes: int = 1
    """Forward and backward passes of a step."""
    seconds_pass: float = 0.0
    seconds_optimizer: float = 0.0
    seconds_warm_up: float = 0.0
    """What the first step took beyond the others."""
    seconds_evaluation: float = 0.0
    final_evaluation: bool = True
    """Whether the last weights are measured once more at the end; rollouts keep what they measured."""
    seconds_save: float = 0.0
    seconds_watched: float = 0.0
    """Of the rehearsal, in all that is counted above; the rest is what the stage does once."""
    tokens_per_pass: float = 0.0
    parameters: int = 0
    trained_parameters: int = 0
    checkpoint_bytes: int = 0


class _Some:
    """The first rows of a data set."""

    def __init__(self, rows: Any, count: int) -> None:
        self.rows, self.count = rows, count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return rows as the data set itself would."""
        return self.rows.__getitems__(indices)


class Watch(TrainerCallback):
    """Takes the time of steps, evaluations and checkpoints, and ends the training when it knows enough."""

    def __init__(self, trainer: Any, ctx: Context, settings: TrainingSettings) -> None:
        self.trainer, self.ctx = trainer, ctx
        rollouts = hasattr(settings, "rollouts")
        self.cycle = settings.epochs * settings.minibatches if rollouts else 1  # type: ignore[attr-defined]
        self.costs = _counts(trainer, rollouts=rollouts)
        self.passes = self.costs.passes if rollouts else 1
        self.first_tokens = 0
        self.ends: list[float] = []
        self.optimizer: list[float] = []
        self.begun = self.saving = self.updating = 0.0
        self.loss: float | None = None
        self.measure, trainer.held_out_loss = trainer.held_out_loss, self.held_out_loss
        if not rollouts:  # which cut a rollout into as many passes as were asked for
            trainer.args.gradient_accumulation_steps = 1

    def held_out_loss(self) -> float:
        """Measure once, on some of the rows where the trainer measures them batch by batch."""
        if self.loss is None:
            trainer, whole = self.trainer, self.trainer.eval_dataset
            size = EVALUATION_BATCHES * trainer.args.per_device_eval_batch_size
            by_batch = type(trainer).held_out_loss.__qualname__ == "Measured.held_out_loss"
            if by_batch and len(whole) > size:
                trainer.eval_dataset = _Some(whole, size)
            share = len(trainer.eval_dataset) / len(whole)
            begun = _now()
            self.loss = self.measure()
            took = _now() - begun
            trainer.eval_dataset = whole
            self.costs.seconds_watched += took
            self.costs.seconds_evaluation = took / share
        return self.loss

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.begun = _now()
        self.first_tokens = self.trainer.tokens_seen

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Gradients are there: what follows comes once in a step."""
        self.updating = _now()

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the time of a step; enough of them end the training with a checkpoint."""
        self.ends.append(_now())
        self.optimizer.append(self.ends[-1] - self.updating)
        whole = len(self.ends) % self.cycle == 0
        cycles = len(self.ends) // self.cycle - 1
        enough = cycles >= FEWEST and self.ends[-1] - self.ends[self.cycle - 1] >= ENOUGH_S
        control.should_training_stop = (whole and enough) or state.global_step >= self.costs.steps
        control.should_evaluate = False
        control.should_save = control.should_training_stop
        self.saving = self.ends[-1]

    def on_save(self, args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Take the time and the size of a checkpoint."""
        self.costs.seconds_save = _now() - self.saving
        newest = complete_checkpoints(Path(args.output_dir))[-1][1]
        self.costs.checkpoint_bytes = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write down what was measured."""
        costs, cycle = self.costs, self.cycle
        costs.seconds_watched += _now() - self.begun
        first = self.ends[cycle - 1] - self.begun
        rest = self.ends[cycle:]
        step = (rest[-1] - self.ends[cycle - 1]) / len(rest) if rest else first / cycle
        chosen = self.optimizer[cycle:] or self.optimizer
        costs.seconds_optimizer = sum(chosen) / len(chosen)
        costs.seconds_pass = (step - costs.seconds_optimizer) / self.passes
        costs.seconds_warm_up = max(0.0, first - cycle * step)
        seen = (self.trainer.tokens_seen - self.first_tokens) * world_size()
        costs.tokens_per_pass = seen / len(self.ends) / self.passes
        write_json(self.ctx.dir / REHEARSAL, asdict(costs))


def watch(trainer: Any, ctx: Context, settings: TrainingSettings) -> None:
    """Have a trainer that is about to train do no more than show what it costs."""
    trainer.add_callback(Watch(trainer, ctx, settings))


def _counts(trainer: Any, *, rollouts: bool) -> Costs:
    args, parameters = trainer.args, list(trainer.model.parameters())
    batches = math.ceil(len(trainer.train_dataset) / world_size() / args.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return Costs(
        steps=args.max_steps if args.max_steps > 0 else math.ceil(per_epoch * args.num_train_epochs),
        steps_per_epoch=None if rollouts else per_epoch,
        epochs=args.num_train_epochs,
        eval_steps=int(args.eval_steps) if args.eval_strategy == "steps" else None,
        save_steps=int(args.save_steps) if args.save_strategy == "steps" else None,
        passes=args.gradient_accumulation_steps,
        final_evaluation=not rollouts,
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )


def _now() -> float:
    """Read the clock once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
