"""The private hooks of transformers' Trainer that PPO stands on do what they did."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from llmpipe.training.ppo.trainer import PPOTrainer
from tests.stages.ppo_worlds import made

HOOKS = {
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_clip_grad_norm": ["self", "model"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "create_optimizer": ["self", "model"],
    "log": ["self", "logs", "start_time"],
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_takes_what_it_took(name: str) -> None:
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == HOOKS[name]
    assert getattr(PPOTrainer, name) is not getattr(Trainer, name)


def calls(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> list[str]:
    """Note in which order hooks are called."""
    seen: list[str] = []
    for name in names:
        real = getattr(PPOTrainer, name)

        def watched(self: Any, *given: Any, _name: str = name, _real: Any = real, **named: Any) -> Any:
            seen.append(_name)
            return _real(self, *given, **named)

        monkeypatch.setattr(PPOTrainer, name, watched)
    return seen


def test_trainer_calls_the_hooks_in_the_order_that_ppo_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes, then the gradient is clipped; the rollout is logged before it is saved; weights before the rest."""
    names = ("training_step", "_clip_grad_norm", "log", "_save_checkpoint", "_save", "_load_from_checkpoint")
    seen = calls(monkeypatch, names)
    saving = {"save_strategy": "steps", "save_steps": 2, "max_grad_norm": 1.0}
    one = {"rollouts": 1, "epochs": 1, "minibatches": 2, "micro_batch": 4, "rollout": {"samples": 16}}
    trainer, watch = made(tmp_path, arguments=saving, **one)
    trainer.train()
    step = ["training_step", "training_step", "_clip_grad_norm"]
    assert seen == [*step, *step, "log", "_save_checkpoint", "_save", "log"]
    assert watch.steps == [1, 1]

    seen.clear()
    again, _ = made(tmp_path, arguments=saving, **(one | {"rollouts": 2}))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert seen == ["_load_from_checkpoint", *step, *step, "log", "_save_checkpoint", "_save", "log"]


def test_the_loss_is_not_scaled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer divides by the number of passes unless it is told that the loss is scaled."""
    found = {}
    for scaled in (True, False):
        monkeypatch.setattr(PPOTrainer, "loss_is_scaled_for_ga", scaled)
        trainer, watch = made(tmp_path / str(scaled), rollouts=1, micro_batch=4)
        trainer.train()
        found[scaled] = watch.gradients[0]["policy.lm_head.weight"]
    assert (found[True] - 2 * found[False]).abs().max() < 1e-7 < found[True].abs().max()


def test_a_run_stops_when_the_counted_steps_are_done(tmp_path: Path) -> None:
    """A rollout that is left early counts its other steps as done; Trainer stops by that count, not by batches."""
    rate = {"learning_rate": 5e-2}
    trainer, watch = made(tmp_path, target_kl=1e-6, epochs=4, arguments=rate)
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps == 24
    assert len(watch.steps) < 24 and trainer.rollouts == 3
