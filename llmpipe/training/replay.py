"""Whether a stage could be gone on from its last checkpoint: it is loaded as a resumed run would load it."""

from __future__ import annotations

from typing import Any

import torch

from llmpipe.artifact import Gate
from llmpipe.checkpoints import complete_checkpoints
from llmpipe.context import Context
from llmpipe.gates import gate

TOLERANCE = 1e-4
"""How far the loss may be off, as a share of it where it is above 1: it is one computation on the same weights."""


class Remembers:
    """Mixed into Trainers: keeps the batch that was learned from last, as it was before a loss took it apart."""

    last_batch: dict[str, Any] | None = None
    replayed: list[Gate]

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super()._prepare_inputs(inputs)  # type: ignore[misc]
        self.last_batch = dict(prepared)
        return prepared


def check(trainer: Any, ctx: Context) -> None:
    """Leave in `trainer.replayed` whether its last checkpoint can be gone on from."""
    with ctx.checking():
        trainer.replayed = replay(trainer, ctx)


def replay(trainer: Any, ctx: Context) -> list[Gate]:
    """Load the last checkpoint over weights that were wiped, and compare the loss of the last batch.

    To be called when training has ended: where the last step was saved, what is loaded is what was there, so that
    nothing has to be put back. There is no gate where it was not saved, or nothing was trained by this process.
    """
    found = complete_checkpoints(ctx.checkpoints)
    if trainer.last_batch is None or not found or found[-1][0] != trainer.state.global_step:
        return []
    seen = trainer.tokens_seen
    before = _loss(trainer)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.zero_()  # or a checkpoint that nobody reads would pass
    try:
        trainer._load_from_checkpoint(str(found[-1][1]))
    except Exception as error:  # a file that is not whole fails in as many ways as there are formats
        return [gate("checkpoint-replays", False, f"{type(error).__name__}: {error}".splitlines()[0])]
    off = abs(_loss(trainer) - before) / max(1.0, abs(before))
    trainer.tokens_seen = seen
    return [gate("checkpoint-replays", off <= TOLERANCE, f"off by {off:.1g}")]


@torch.no_grad()
def _loss(trainer: Any) -> float:
    """Return the loss of the last batch without dropout."""
    model = trainer.model
    was_training = model.training
    model.eval()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, dict(trainer.last_batch))
    model.train(was_training)
    return float(loss)
