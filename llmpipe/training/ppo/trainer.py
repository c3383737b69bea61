"""PPO as a Trainer: it asks for micro-batches, and gets them from the plan of a rollout; an empty plan makes the next.

Trainer brings optimizer, schedule, accumulation, clipping, mixed precision, DDP, callbacks and checkpoints; here is
what PPO adds. `checkpoint.py` saves and loads what is beside the weights, `held_out.py` measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from llmpipe.errors import StageError
from llmpipe.training.flow import Measured
from llmpipe.training.ppo import core, diagnosis, experience
from llmpipe.training.ppo.checkpoint import Resumable
from llmpipe.training.ppo.experience import Collector, Experience, MicroBatch
from llmpipe.training.ppo.held_out import HeldOut
from llmpipe.training.ppo.policy_value import PolicyValue, rescale
from llmpipe.training.ppo.prompts import PromptStream
from llmpipe.training.ppo.scoring import Asked

LOSS_SUMS = ("policy_loss", "value_loss", "policy_kl", "clipped", "tokens")
VALUE_HEADS = ("value.head.weight", "value.weight")  # of a network of its own, and on the policy
KEPT_ROLLOUTS = 20  # what the diagnoses look back on, beside the first
SHOWN = ("reward", "kl", "entropy", "length", "ended_share")


@dataclass(frozen=True)
class Options:
    """The numbers of the algorithm; the names are those of the stage's settings."""

    samples: int
    samples_per_prompt: int
    rollouts: int
    epochs: int
    minibatches: int
    clip: float
    dual_clip: float | None
    value_clip: float | None
    value_coefficient: float
    value_learning_rate: float
    value_warmup_rollouts: int
    target_kl: float | None
    rescale_value: bool
    """Whether the value network gives a reward model's scores, and has to be brought to the rewards' scale."""

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps."""
        return self.epochs * self.minibatches


class PPOTrainer(Resumable, HeldOut, Measured, Trainer):
    """Trains a `PolicyValue`; with several processes, each samples and learns from its share of a rollout."""

    optimizer: Any
    loss_is_scaled_for_ga = True  # a minibatch's loss is one mean over its tokens, however it is cut

    def __init__(
        self,
        model: PolicyValue,
        *,
        options: Options,
        collector: Collector,
        prompts: Sequence[Asked],
        held_out: Sequence[Asked],
        price: core.KLPrice,
        say: Callable[[str], None],
        progress: Callable[..., None],
        **trainer: Any,
    ) -> None:
        super().__init__(model=model, train_dataset=range(1), eval_dataset=held_out, **trainer)
        self.options, self.collector, self.prompts, self.price = options, collector, prompts, price
        self.say, self.show = say, progress
        self.stream = PromptStream(len(prompts), self.args.seed)
        self.rollouts = 0
        self.plan: list[MicroBatch] = []
        self.experience: Experience | None = None
        self.metrics: dict[str, Any] = {}
        self.sums = dict.fromkeys(LOSS_SUMS, 0.0)
        self.minibatch_sums = dict.fromkeys(LOSS_SUMS, 0.0)
        self.minibatch_tokens = 0
        self.ratio_most = 0.0
        self.history: list[dict[str, Any]] = []
        self.measures: list[dict[str, Any]] = []

    # --- what Trainer asks for

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return one empty batch for each micro-batch there will be."""
        count = self.args.max_steps * self.args.gradient_accumulation_steps
        return DataLoader(range(count), batch_size=1, collate_fn=lambda _: {})

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Give policy and value their own learning rates; no bias, norm or value head decays."""
        if self.optimizer is None:
            module = model or self.model
            decaying = set(self.get_decay_parameter_names(module))
            rates = {"policy": self.args.learning_rate, "value": self.options.value_learning_rate}
            groups: dict[tuple[str, bool], list[Tensor]] = {}
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    plain = name.removeprefix("module.")
                    part = self.model.part_of(plain)
                    decays = name in decaying and plain not in VALUE_HEADS
                    groups.setdefault((part, decays), []).append(parameter)
            listed = [
                {"params": chosen, "lr": rates[part], "weight_decay": self.args.weight_decay if decays else 0.0}
                for (part, decays), chosen in groups.items()
            ]
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, module)
            self.optimizer = cls(listed, **options)
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip policy and value apart: a value far from its returns must not shrink the policy's step."""
        del model
        self.accelerator.unscale_gradients()  # once: Accelerator's own clipping, called twice, fails in fp16
        norms = {}
        for part in ("policy", "value"):
            parameters = [p for name, p in self.model.trained().items() if self.model.part_of(name) == part]
            norms[part] = nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        self.metrics["value_grad_norm"] = float(norms["value"])
        return norms["policy"] + 0 * norms["value"]  # not finite where either is not

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Learn from the next micro-batch of the plan; where there is none, sample first."""
        del inputs
        if not self.plan:
            self.roll_out()
        begun = time.perf_counter()
        micro = self.plan.pop(0)
        assert self.experience is not None
        self.minibatch_tokens = micro.tokens
        loss = super().training_step(model, self.experience.batch(micro.rows), num_items_in_batch)
        if micro.ends_minibatch:
            self._end_minibatch()
        seconds = self.collector.seconds
        seconds["learning"] = seconds.get("learning", 0.0) + time.perf_counter() - begun
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Return the micro-batch's share of its minibatch's mean loss; DDP averages, so it is times the processes."""
        logps, values = model(inputs["input_ids"], inputs["prompt_lengths"], inputs["lengths"])
        old, options = inputs["logps"], self.options
        policy = core.policy_loss(logps, old, inputs["advantages"], clip=options.clip, dual_clip=options.dual_clip)
        value = core.value_loss(values, inputs["values"], inputs["returns"], clip=options.value_clip)
        with torch.no_grad():
            ratios = core.ratio(logps, old)
            sums = (policy, value, core.k3(old - logps), ((ratios - 1).abs() > options.clip).float(), ratios * 0 + 1)
            for name, terms in zip(LOSS_SUMS, sums, strict=True):
                self.minibatch_sums[name] += float(terms.sum())
            if len(old):
                self.ratio_most = max(self.ratio_most, float((ratios - 1).abs().max()))
        learning = 0.0 if self.rollouts <= options.value_warmup_rollouts else 1.0
        total = learning * policy.sum() + options.value_coefficient * value.sum()
        return total * self.args.world_size / max(1, self.minibatch_tokens)

    def _end_minibatch(self) -> None:
        """Add up the minibatch; leave the rest of the rollout when the policy is too far from the sampler."""
        sums = {name: core.all_sum(value) for name, value in self.minibatch_sums.items()}
        self.minibatch_sums = dict.fromkeys(LOSS_SUMS, 0.0)
        self.sums = {name: self.sums[name] + value for name, value in sums.items()}
        self.metrics["steps"] += 1
        if self.rollouts == self.metrics["steps"] == 1:
            diagnosis.check_ratio(self.ratio_most, exact=self.exact)
        limit = self.options.target_kl
        if limit and self.plan and sums["policy_kl"] > 1.5 * limit * sums["tokens"]:
            left = sum(micro.ends_minibatch for micro in self.plan)
            self.plan = []
            self.state.global_step += left  # the schedule goes by rollouts: what is left out counts as done
            for _ in range(left):
                self.lr_scheduler.step()

    @property
    def exact(self) -> bool:
        """Whether equal computations give equal numbers, whatever the batch."""
        return not (self.args.bf16 or self.args.fp16)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a rollout: what was sampled, then what the steps on it did; say what looks wrong."""
        if "loss" in logs:
            del logs["loss"]  # a sum of two unlike things; both are logged
            tokens = max(1.0, self.sums["tokens"])
            logs |= {name: self.sums[name] / tokens for name in ("policy_loss", "value_loss", "policy_kl")}
            logs |= {"clip_fraction": self.sums["clipped"] / tokens, "ratio_most": self.ratio_most}
            logs |= self.metrics
            logs |= {f"seconds_{phase}": round(took, 3) for phase, took in self.collector.seconds.items()}
            self.collector.seconds.clear()
            newest = {key: value for key, value in logs.items() if isinstance(value, int | float)}
            self.history = [*self.history[:1], *self.history[1:][-KEPT_ROLLOUTS:], newest]
            for line in diagnosis.lines(self.history):
                self.say(line)
        super().log(logs, start_time)

    # --- one rollout

    def roll_out(self) -> None:
        """Sample and score answers, and plan how to learn from them."""
        options, args = self.options, self.args
        self.rollouts += 1
        self._show("sampling")
        taken = self.stream.take(options.samples // options.samples_per_prompt)
        indices = [index for index in taken for _ in range(options.samples_per_prompt)]
        asked = [self.prompts[index] for index in indices[args.process_index :: args.world_size]]
        seed = seed_of(args.seed, self.rollouts, args.process_index)
        with self.compute_loss_context_manager():
            scored = self.collector.answer(self.model.policy, asked, seed=seed)
            if self.collector.rewards.scale is None:
                self._settle(scored)
            found, metrics, furthest = self.collector.experience(asked, scored, beta=self.price.beta)
        if metrics["skipped"] == options.samples:
            raise StageError("no answer of a rollout could be scored", hint="a reward is a number for each answer")
        if self.rollouts == 1:
            diagnosis.check_reference(furthest, exact=self.exact)
        self.experience = found
        self.metrics = metrics | {"beta": self.price.beta, "rollout": self.rollouts, "steps": 0}
        self.sums, self.ratio_most = dict.fromkeys(LOSS_SUMS, 0.0), 0.0
        self.price.update(metrics["kl"], answers=options.samples)
        self.plan = experience.plan(
            found.sequences.lengths.tolist(),
            epochs=options.epochs,
            minibatches=options.minibatches,
            passes=args.gradient_accumulation_steps,
            seed=seed,
        )
        self._show("learning")

    def _settle(self, scored: experience.Scored) -> None:
        """Take the scale of rewards from the first answers, and have the values begin at what rewards are.

        A value network that gives a reward model's scores is brought to their scale. Any other begins at the mean:
        from 0, a mean reward of -2 would make every end look bad until the values had come down, token by token, and
        the policy would first unlearn to end (seen: 300-token stories grew to the limit, and stayed there).
        """
        rewards, value = self.collector.rewards, self.model.value
        rewards.measure(scored.components)
        assert rewards.shift is not None and rewards.scale is not None
        head = value if isinstance(value, nn.Linear) else value.head
        if self.options.rescale_value:
            rescale(head, mean=rewards.shift[0], deviation=rewards.scale[0])
        else:
            worth = self.collector.rewards_of(scored)
            nn.init.constant_(head.bias, core.moments(worth[worth.isfinite()])[1])

    def _show(self, doing: str) -> None:
        shown = {key: self.metrics[key] for key in SHOWN if key in self.metrics}
        where = {"rollout": self.rollouts, "rollouts": self.options.rollouts}
        self.show(step=self.state.global_step, max_steps=self.args.max_steps, **where, **shown, doing=doing)


def seed_of(seed: int, rollout: int, process: int) -> int:
    """Return a seed of its own for every rollout and process."""
    return ((seed * 1_000_003 + rollout) * 1_009 + process) % 2**63
