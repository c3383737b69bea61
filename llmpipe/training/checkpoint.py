"""What a stage's checkpoints say of themselves, and which of them it goes on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llmpipe.artifact import read_json, write_json
from llmpipe.checkpoints import MARKER, complete_checkpoints, mark_complete, set_aside, spoilt
from llmpipe.context import Context
from llmpipe.errors import DivergedError, StageError

VERSIONED = ("torch", "transformers", "trl", "peft")
DIVERGED = "diverged.json"


def mark(folder: Path, ctx: Context, *, step: int, processes: int) -> None:
    """Mark a checkpoint complete, with all that has to be the same for whoever goes on from it.

    Trainer's pickled arguments go: nothing reads them.
    """
    (folder / "training_args.bin").unlink(missing_ok=True)
    versions = {name: version(name) for name in VERSIONED}
    mark_complete(folder, step=step, fingerprint=ctx.step.fingerprint, processes=processes, versions=versions)


def usable(trainer: Any, ctx: Context) -> list[tuple[int, Path]]:
    """Return the complete checkpoints as (step, folder), oldest first; the newest has all the bytes that were written.

    One that has not is set aside, and the one before is the newest.

    Raises:
        StageError: it was written under other settings, or from other data.
    """
    args = trainer.args
    if args.process_index == 0:
        while (found := complete_checkpoints(ctx.checkpoints)) and (name := spoilt(found[-1][1])):
            kept = set_aside(found[-1][1])
            ctx.say(f"{name} of step {found[-1][0]} is not as it was written; that checkpoint is kept as {kept.name}")
    if args.world_size > 1:
        dist.barrier()
    found = complete_checkpoints(ctx.checkpoints)
    if found:
        _compare(*found[-1], ctx, processes=args.world_size)
    return found


def _compare(step: int, folder: Path, ctx: Context, *, processes: int) -> None:
    """Refuse a checkpoint that is of something else, and say what may keep it from going on to the bit."""
    marker = read_json(folder / MARKER) or {}
    if marker.get("fingerprint", ctx.step.fingerprint) != ctx.step.fingerprint:
        raise StageError(
            f"the checkpoint of step {step} was written under other settings or from other data",
            hint=f"--force {ctx.step.name} begins the stage again",
        )
    now = {name: version(name) for name in VERSIONED}
    other = {name: was for name, was in marker.get("versions", {}).items() if now.get(name, was) != was}
    if other:
        was, has = (", ".join(f"{name} {versions[name]}" for name in other) for versions in (other, now))
        ctx.say(f"the checkpoint was written with {was}, and this is {has}: the end may differ in the last digits")
    before = marker.get("processes", processes)
    if before != processes:
        ctx.say(f"the checkpoint was written by {before} processes, and {processes} go on: rows come in another order")


@contextmanager
def explained(trainer: Any, ctx: Context) -> Iterator[None]:
    """Where training diverges, leave the batch that it did so on in diverged.json, as ids and as text."""
    try:
        yield
    except DivergedError as error:
        ids = [
            tensor
            for name, tensor in (trainer.last_batch or {}).items()
            if name.endswith("input_ids") and isinstance(tensor, torch.Tensor) and tensor.ndim == 2
        ]
        tokenizer = trainer.processing_class
        rows = [row for tensor in ids for row in tensor.tolist()]
        found = [{"ids": row} | ({"text": tokenizer.decode(row)} if tokenizer else {}) for row in rows]
        if found and not ctx.rank:
            write_json(ctx.dir / DIVERGED, {"step": trainer.state.global_step + 1, "rows": found})
            error.hint = f"{error.hint}; the batch is in {ctx.dir / DIVERGED}"
        raise
