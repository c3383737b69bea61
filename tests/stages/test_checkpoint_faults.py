"""Checkpoints that a disk spoilt, or that are of another machine: noticed, kept aside, and gone on without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpipe.checkpoints import MARKER, complete_checkpoints, drop_incomplete, mark_complete, spoilt
from llmpipe.errors import DivergedError, StageError, StoppedError
from llmpipe.training import checkpoint, flow
from tests.stages.test_guarantees import rows, same, trainer_of, weights
from tests.stages.tiny import context_for


class Trained:
    """A trainer that was stopped at step 6, with checkpoints of steps 2, 4 and 6 or the last of them."""

    def __init__(self, ctx: Any, make_model: Any) -> None:
        self.ctx, self.make_model = ctx, make_model
        trainer, settings = self.fresh()
        ctx.stop_requested = lambda: "interrupt" if trainer.state.global_step >= 6 else None
        with pytest.raises(StoppedError):
            flow.fit(trainer, ctx, settings)
        ctx.stop_requested = lambda: None
        ctx.events.clear()

    def fresh(self) -> Any:
        return trainer_of(self.ctx, self.make_model(), save_steps=2, save_strategy="steps", max_steps=8)

    def again(self) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Go on to the end; returns the weights, and what was said."""
        trainer, settings = self.fresh()
        flow.fit(trainer, self.ctx, settings)
        return weights(trainer.model), [event["text"] for event in self.ctx.events if event["event"] == "say"]


@pytest.fixture
def trained(ctx: Any, make_model: Any) -> Trained:
    return Trained(ctx, make_model)


def test_a_flipped_bit_in_any_file_is_noticed(trained: Trained) -> None:
    """The folder looks whole by its sizes; each file in turn has one bit that is another."""
    folder = complete_checkpoints(trained.ctx.checkpoints)[-1][1]
    names = sorted(path.name for path in folder.iterdir() if path.name != MARKER)
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < {*names}
    assert spoilt(folder) is None
    for name in names:
        whole = (folder / name).read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            assert spoilt(folder) == name
        (folder / name).write_bytes(whole)
    assert spoilt(folder) is None


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "marker"])
def test_the_one_before_is_taken(trained: Trained, how: str, make_model: Any) -> None:
    (_, older), (_, newest) = complete_checkpoints(trained.ctx.checkpoints)[-2:]
    file = newest / (MARKER if how == "marker" else "optimizer.pt")
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        half = len(content) // 2
        file.write_bytes(
            content[:half] + (bytes([content[half] ^ 1]) + content[half + 1 :] if how == "flipped" else b"")
        )
    drop_incomplete(trained.ctx.checkpoints)  # as the runner does before
    _, said = trained.again()
    assert "resuming from step 4" in said
    aside = trained.ctx.checkpoints / "checkpoint-6.bad-1"
    if how == "flipped":
        message = "optimizer.pt of step 6 is not as it was written; that checkpoint is kept as checkpoint-6.bad-1"
        assert said[0] == message
        assert (aside / "optimizer.pt").is_file()
        drop_incomplete(trained.ctx.checkpoints)
        assert aside.is_dir()
    else:
        assert not aside.exists()
    assert older.name == "checkpoint-4"


def test_whatever_was_spoilt_the_end_is_the_same(trained: Trained, tmp_path: Path) -> None:
    newest = complete_checkpoints(trained.ctx.checkpoints)[-1][1]
    content = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    spoilt_end, _ = trained.again()
    whole = Trained(context_for(tmp_path / "whole"), trained.make_model)
    assert same(spoilt_end, whole.again()[0])


def test_a_clock_that_was_set_back_a_year_changes_nothing(trained: Trained) -> None:
    for number, (_, folder) in enumerate(complete_checkpoints(trained.ctx.checkpoints)):
        for path in (folder, *folder.iterdir()):
            os.utime(path, (1.7e9 - number * 365 * 86400,) * 2)
    _, said = trained.again()
    assert "resuming from step 6" in said
    assert complete_checkpoints(trained.ctx.checkpoints)[-1][0] == 8


def test_another_library_and_another_number_of_processes_are_said(trained: Trained) -> None:
    folder = complete_checkpoints(trained.ctx.checkpoints)[-1][1]
    marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    assert marker["processes"] == 1 and marker["versions"].keys() == {*checkpoint.VERSIONED}
    (folder / MARKER).unlink()
    facts = {"step": 6, "processes": 2, "versions": marker["versions"] | {"torch": "2.12.0"}}
    mark_complete(folder, **facts)
    _, said = trained.again()
    torch_here = marker["versions"]["torch"]
    assert said[:2] == [
        f"the checkpoint was written with torch 2.12.0, and this is torch {torch_here}: "
        "the end may differ in the last digits",
        "the checkpoint was written by 2 processes, and 1 go on: rows come in another order",
    ]


def test_a_checkpoint_of_other_settings_is_refused(trained: Trained) -> None:
    folder = complete_checkpoints(trained.ctx.checkpoints)[-1][1]
    mark_complete(folder, step=6, fingerprint="another")
    with pytest.raises(StageError) as caught:
        trained.again()
    assert str(caught.value) == "the checkpoint of step 6 was written under other settings or from other data"
    assert caught.value.hint == "--force x begins the stage again"


def test_the_batch_that_made_it_diverge_is_left(ctx: Any, make_model: Any, tokenizer: Any) -> None:
    trainer, settings = trainer_of(ctx, make_model(), max_steps=4)
    trainer.processing_class = tokenizer
    compute_loss = trainer.compute_loss

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        return loss * float("nan") if trainer.state.global_step == 2 else loss

    trainer.compute_loss = spoiled
    with pytest.raises(DivergedError) as caught:
        flow.fit(trainer, ctx, settings)
    assert caught.value.hint is not None and caught.value.hint.endswith(f"; the batch is in {ctx.dir}/diverged.json")
    left = json.loads((ctx.dir / "diverged.json").read_text(encoding="utf-8"))
    assert left["step"] == 3 and len(left["rows"]) == 2
    train = trainer.train_dataset.__getitems__(list(range(40)))["input_ids"].tolist()
    for row in left["rows"]:
        assert row["ids"] in train and row["text"] == tokenizer.decode(row["ids"])


def test_the_best_weights_are_not_taken_from_a_broken_checkpoint(
    ctx: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = rows(ctx.dir, "held_out.tokens", 1, 12)
    trainer, settings = trainer_of(ctx, make_model(), held_out=held_out, eval_steps=2, max_steps=4)
    losses = iter([5.0, 1.0, 2.0, 3.0])  # before, steps 2 and 4, at the end
    monkeypatch.setattr(trainer, "held_out_loss", lambda: next(losses))
    best = ctx.checkpoints / "checkpoint-2" / "model.safetensors"

    def flip(*_: Any) -> None:
        best.write_bytes(best.read_bytes()[:-1] + b"\x01")

    monkeypatch.setattr(flow.replay, "check", flip)
    with pytest.raises(StageError, match="checkpoint-2 is gone or broken"):
        flow.fit(trainer, ctx, settings)
