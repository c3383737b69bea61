"""Recipe → TrainingArguments: llmpipe's defaults, then the user's options, then what llmpipe decides."""

from __future__ import annotations

import math
import os
from typing import Any, TypeVar, cast

import torch
from transformers import TrainingArguments

from llmpipe.artifact import read_json, write_json
from llmpipe.context import Context
from llmpipe.errors import StageError
from llmpipe.settings import SupervisedSettings, TrainingSettings
from llmpipe.training import precision as precisions
from llmpipe.training.packing import wait_for

Arguments = TypeVar("Arguments", bound=TrainingArguments)

DEFAULTS: dict[str, Any] = {
    "optim": "adamw_torch_fused",
    "logging_steps": 10,
    "logging_first_step": True,
    "report_to": "none",
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,  # TRL turns it on, which costs a fifth of the speed of a model that fits anyway
    "ddp_find_unused_parameters": False,
    "eval_strategy": "steps",
    "prediction_loss_only": True,
    "dataloader_pin_memory": torch.cuda.is_available(),
}
EVAL_TOKENS = 16384  # per pass over held-out rows, unless micro_batch_tokens says what there is room for
EVALUATIONS = 10  # over a run, unless trainer.eval_steps says otherwise


def build(
    cls: type[Arguments],
    ctx: Context,
    settings: TrainingSettings,
    *,
    options: dict[str, Any],
    stage_defaults: dict[str, Any],
    rows: int,
    row_tokens: int,
    measured: bool,
    width: int,
) -> Arguments:
    """Build the arguments of a Hugging Face trainer.

    `rows` of about `row_tokens` tokens each are trained on; `measured` says that held-out rows exist; `width` is the
    model's, from which the precision is chosen.
    """
    merged = {**DEFAULTS, **stage_defaults, **options} | ({} if measured else {"eval_strategy": "no"})
    eval_tokens = EVAL_TOKENS
    if isinstance(settings, SupervisedSettings) and settings.batch_tokens:
        merged |= batch_geometry(settings, row_tokens=row_tokens, ctx=ctx)
        eval_tokens = min(eval_tokens, settings.micro_batch_tokens)
    tokens = int(merged.get("per_device_train_batch_size", 8)) * row_tokens
    precision = _chosen_once(settings, ctx, tokens=tokens, width=width)
    if settings.precision == "auto" and precision != "fp32":
        ctx.say(f"precision {precision}: this device multiplies it faster than fp32")
    steps = total_steps(merged, rows=rows)
    every = max(1, steps // EVALUATIONS)
    merged.setdefault("eval_steps", every)
    merged.setdefault("save_steps", merged["eval_steps"])
    merged.setdefault("save_strategy", "steps")
    merged.setdefault("per_device_eval_batch_size", max(1, eval_tokens // row_tokens))
    follow(merged, ctx)
    try:
        return cls(
            **merged,
            **precisions.arguments(precision),
            output_dir=str(ctx.checkpoints),
            seed=ctx.seed,
            save_total_limit=None,  # Trainer rotates by file time, which a clock that is set back turns against it
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            # said outright: where a GPU is only absent, Trainer 5.23 leaves the processes of torchrun unconnected
            use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
            do_train=True,
        )
    except (ValueError, TypeError) as error:
        raise StageError(f"trainer options: {error}".splitlines()[0]) from error


def follow(options: dict[str, Any], ctx: Context) -> None:
    """Give what `report_to` names a name for this stage; a rehearsal reports to nobody.

    TensorBoard's files go beside the stage's others: by default Trainer puts them among the checkpoints.
    """
    if ctx.is_rehearsal:
        options["report_to"] = "none"
    if options["report_to"] != "none":
        options.setdefault("run_name", f"{ctx.run_dir.name}-{ctx.step.name}")
        options.setdefault("project", "llmpipe")
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(ctx.dir / "tensorboard"))


def _chosen_once(settings: TrainingSettings, ctx: Context, *, tokens: int, width: int) -> precisions.Precision:
    """Measure on rank 0 and keep the answer: another process, or a resumed run, must not measure differently."""
    path = ctx.dir / "precision.json"
    if ctx.rank == 0 and not path.exists():
        write_json(path, precisions.choose(settings.precision, tokens=tokens, width=width))
    wait_for(path)
    return cast(precisions.Precision, read_json(path))


def world_size() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def batch_geometry(settings: SupervisedSettings, *, row_tokens: int, ctx: Context) -> dict[str, int]:
    """Turn `batch_tokens` into rows per forward pass and passes per step, the same on any number of processes."""
    assert settings.batch_tokens is not None
    rows = max(1, round(settings.batch_tokens / row_tokens / world_size()))
    passes = math.ceil(rows / max(1, settings.micro_batch_tokens // row_tokens))
    micro = math.ceil(rows / passes)
    ctx.say(
        f"a step of {micro * passes * world_size() * row_tokens:,} tokens: {micro} rows of {row_tokens} "
        f"x {passes} passes x {world_size()} processes"
    )
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": passes}


def total_steps(options: dict[str, Any], *, rows: int) -> int:
    """Count the optimizer steps of a run as Trainer will: from max_steps, else from the epochs."""
    if options.get("max_steps", -1) > 0:
        return int(options["max_steps"])
    batches = math.ceil(rows / world_size() / int(options.get("per_device_train_batch_size", 8)))
    per_epoch = max(1, math.ceil(batches / int(options.get("gradient_accumulation_steps", 1))))
    return math.ceil(per_epoch * float(options.get("num_train_epochs", 3.0)))
