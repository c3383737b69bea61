"""Measuring a policy on prompts that it never learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from llmpipe.training.ppo import core
from llmpipe.training.ppo.experience import Collector
from llmpipe.training.ppo.scoring import Asked

KEPT = ("reward", "kl", "length", "ended_share", "unique_share", "skipped")
CHANGED = ("reward", "length", "ended_share")
SAMPLES = 3


class HeldOut:
    """Mixed into trainers that sample: answers to held-out prompts, of one seed, judged by what is maximised."""

    args: Any
    state: Any
    control: Any
    callback_handler: Any
    eval_dataset: Sequence[Asked]
    collector: Collector
    price: core.KLPrice
    measures: list[dict[str, Any]]
    history: list[dict[str, Any]]
    log: Any
    roll_out: Callable[[], None]
    compute_loss_context_manager: Any

    def held_out_loss(self) -> float:
        """Return what is to be small: minus the reward, plus the price of the KL."""
        return float(self.measure()["loss"])

    def shown(self, loss: float) -> str:
        """Write what decides on the best checkpoint for people."""
        return f"held-out reward {-loss:.3f}, less the price of its KL,"

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the held-out reward; the best checkpoint is the one with the smallest `eval_loss`."""
        found = self.measure()
        metrics = {f"eval_{key}": found[key] for key in ("loss", *KEPT)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self) -> dict[str, Any]:
        """Answer the held-out prompts; a step is measured once.

        The price in the loss is the one that training began with: an adaptive one would move the goal.
        """
        step = self.state.global_step
        if self.measures and self.measures[-1]["step"] == step:
            return self.measures[-1]
        if self.collector.rewards.scale is None:
            self.roll_out()  # rewards take their scale from the first rollout; nothing is learned from it yet
        mine = self.eval_dataset[self.args.process_index :: self.args.world_size]
        seconds, self.collector.seconds = self.collector.seconds, {}
        with torch.no_grad(), self.compute_loss_context_manager():
            scored = self.collector.answer(
                self.collector.model.policy, mine, seed=self.args.seed + self.args.process_index
            )
            worth = self.collector.rewards_of(scored)
            _, _, log_ratios = self.collector.read(self.collector.sequences(mine, scored, worth.isfinite()))
            metrics = self.collector.metrics(scored, log_ratios)
        self.collector.seconds = seconds
        samples = zip(mine, scored.texts, worth.tolist(), strict=True)
        self.measures.append(
            {key: value for key, value in metrics.items() if key in KEPT or key.startswith("reward_")}
            | {
                "step": step,
                "loss": self.price.initial * metrics["kl"] - metrics["reward"],
                "samples": [
                    {"prompt": one.shown, "answer": text.strip(), "reward": reward}
                    for one, text, reward in list(samples)[:SAMPLES]
                ],
            }
        )
        return self.measures[-1]

    def kept(self, loss: float | None) -> dict[str, Any]:
        """Return the measurement of the weights that were kept: the one with this loss, else the last."""
        return next((found for found in self.measures if found["loss"] == loss), self.measures[-1])

    def outcome(self, loss: float | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what changed, and answers to the same prompts before and after.

        Without held-out prompts, the first and the last rollout have to do.
        """
        measured = len(self.measures) > 0
        before = self.measures[0] if measured else self.history[0]
        after = self.kept(loss) if measured else self.history[-1]
        metrics = {key: after[key] for key in (*CHANGED, "kl", "unique_share") if key in after}
        metrics |= {f"{key}_before": before[key] for key in CHANGED}
        pairs = zip(before["samples"], after["samples"], strict=True) if measured else ()
        return metrics, [
            {
                "prompt": old["prompt"],
                "before": old["answer"],
                "after": new["answer"],
                "reward_before": old["reward"],
                "reward_after": new["reward"],
            }
            for old, new in pairs
        ]
