"""TRL's RLOOTrainer and GRPOTrainer as llmpipe uses them: prompts as ids, PPO's rewards, exact resumption.

Several answers to one prompt are compared with each other, so that there is no value network (arXiv:2402.14740,
arXiv:2402.03300). What TRL 1.16 gets wrong on the way is put right here, and held by tests/stages/test_group.py:

- it gives no position ids beside prompts that are padded on the left, which puts GPT-2's log-probabilities off by nats
  (huggingface/trl#6800): a hook on the model counts them from the mask;
- it scores answers as texts without their end token (huggingface/trl#3026): rewards read the ids that were sampled;
- its reference is what lies at the policy's path, which of a merged adapter is the bare base: it is given a copy of
  the policy as it came;
- it begins a resumed run with an empty buffer: in the middle of a rollout, that is saved with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers import PreTrainedTokenizerBase as Tokenizer
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer import grpo_trainer, rloo_trainer

from llmpipe.artifact import read_json, write_json
from llmpipe.errors import StageError
from llmpipe.training.adapters import logits_of, near, probe
from llmpipe.training.flow import Measured
from llmpipe.training.lora import OnlyTrained
from llmpipe.training.models import accepts_positions
from llmpipe.training.ppo import core
from llmpipe.training.ppo.experience import Collector
from llmpipe.training.ppo.held_out import HeldOut
from llmpipe.training.ppo.policy_value import Reference
from llmpipe.training.ppo.rollout import Answer, no_saved_habits
from llmpipe.training.ppo.scoring import Asked
from llmpipe.training.ppo.shared import AdapterReference

NAMES = {
    "reward": "reward",
    "reward_std": "reward_deviation",
    "frac_reward_zero_std": "equal_groups_share",
    "completions/mean_length": "length",
    "entropy": "entropy",
    "kl": "kl_per_token",
    "clip_ratio/region_mean": "clip_fraction",
    "step_time": "seconds_learning",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
}
"""TRL's names of what is logged, and ours, which are rlhf-ppo's; what is not here is not passed on."""

COUNTED = ("measures", "history", "_step")
ALL_EQUAL = 0.9
"""Share of prompts whose answers all have one reward, from which on it is said that little can be learned."""


class PlainNames(Trainer):
    """Behind TRL's trainers: renames what they log."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass on what has a name here, and what llmpipe logs itself."""
        named = {NAMES.get(key, key): value for key, value in logs.items() if key in NAMES or "reward_" in key}
        named |= {key: value for key, value in logs.items() if key.startswith(("eval_", "rollout", "train_"))}
        if "completions/clipped_ratio" in logs:
            named["ended_share"] = 1 - logs["completions/clipped_ratio"]
        super().log(named, start_time)


class Groups(HeldOut, OnlyTrained, Measured):
    """Mixed into TRL's trainers; with several processes, each samples its share of the answers."""

    processing_class: Any
    module: Any
    """TRL's, of the trainer that this is mixed into."""

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        tokenizer: Tokenizer,
        *,
        args: Any,
        collector: Collector,
        asked: Sequence[Asked],
        order: Sequence[int],
        held_out: Sequence[Asked],
        say: Callable[[str], None],
    ) -> None:
        """Take the policy, which `collector` reads as well; `order` are the places in `asked`, for the whole run."""
        self.collector, self.asked, self.say = collector, asked, say
        self.price = core.KLPrice(args.beta)
        self.measures: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        with self._reference_given(collector.reference):
            super().__init__(  # type: ignore[call-arg]
                model=policy,
                reward_funcs=self.score,
                args=args,
                train_dataset=Dataset.from_dict({"prompt": [str(place) for place in order]}),
                eval_dataset=held_out or None,
                processing_class=tokenizer,
            )
        if isinstance(policy, PeftModel):  # with the frozen copy of its adapter that TRL has added
            collector.reference = AdapterReference(policy)
        for model in {id(one): one for one in (policy, collector.reference.model)}.values():
            count_positions(model)
        refuse_unless_padding_is_unseen(policy, tokenizer.pad_token_id)

    @contextmanager
    def _reference_given(self, reference: Reference | AdapterReference) -> Iterator[None]:
        """Have TRL take our reference where it would load one from the policy's path."""
        original = self.module.create_model_from_path
        self.module.create_model_from_path = lambda *_, **__: reference.model
        try:
            yield
        finally:
            self.module.create_model_from_path = original

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card into checkpoints; `llmpipe export` writes one for people."""

    # --- prompts in, rewards out

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the ids that llmpipe's data layer made of the prompts, which TRL knows by their places alone."""
        return [self.asked[int(place)].ids for place in prompts], None, {}

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        """Sample as TRL does, with nothing of the model's own generation config."""
        with no_saved_habits(self.model):
            return super()._generate_single_turn(*args, **options)  # type: ignore[misc]

    def score(
        self, prompts: list[str], completion_ids: list[list[int]], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float | None]:
        """Return what each answer is worth; None for one that cannot be scored, which is then not learned from.

        Raises:
            StageError: none can be.
        """
        asked = [self.asked[int(place)] for place in prompts]
        ends = set(self.eos_token_ids)  # type: ignore[attr-defined]
        answers = [Answer(ids, finished=ids[-1] in ends) for ids in completion_ids]
        scored = self.collector.score(asked, answers)
        worth = self.collector.rewards_of(scored)
        usable = worth.isfinite()
        if not core.all_sum(usable.sum()):
            raise StageError("no answer of a rollout could be scored", hint="a reward is a number for each answer")
        for column, name in enumerate(self.collector.rewards.names):
            found = scored.components[usable, column]
            log_metric(f"reward_{name}", float(found.mean()) if len(found) else 0.0)
        return [value if ok else None for value, ok in zip(worth.tolist(), usable.tolist(), strict=True)]

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *rest: Any, **more: Any) -> Tensor:
        """Count the tokens of a micro-batch, and return TRL's loss of it."""
        self.tokens_seen += inputs["prompt_ids"].numel() + inputs["completion_ids"].numel()
        loss: Tensor = super().compute_loss(model, inputs, *rest, **more)  # type: ignore[misc]
        return loss

    # --- what is said and kept

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a rollout, or held-out answers; say when there is little to learn from."""
        of_held_out = "eval_loss" in logs
        was_training = self.model.training
        self.model.train(was_training and not of_held_out)  # or TRL would add a rollout's figures to those
        if not of_held_out and "loss" in logs:
            per_rollout = self.args.steps_per_generation * self.args.num_iterations
            every = per_rollout // self.args.gradient_accumulation_steps
            logs |= {"rollout": self.state.global_step // every, "rollouts": self.args.max_steps // every}
        super().log(logs, start_time)
        self.model.train(was_training)
        if "reward" in (newest := self.state.log_history[-1]):
            self._look_back(newest)

    def _look_back(self, newest: dict[str, Any]) -> None:
        self.history = [*self.history[:1], newest]
        if len(self.history) == 1 and newest["equal_groups_share"] >= ALL_EQUAL:
            self.say(
                f"to {newest['equal_groups_share']:.0%} of the prompts all answers have the same reward, so that there "
                "is nothing to learn from them: raise rollout.samples_per_prompt, or give part of the reward for less"
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as Trainer does, then the answers at hand, which the next steps may learn from."""
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        buffered = enumerate(self._buffered_inputs)
        tensors = {f"{at}.{name}": value.cpu().clone() for at, batch in buffered for name, value in batch.items()}
        save_file(tensors, folder / f"{self._name()}.safetensors")
        counted = {name: getattr(self, name) for name in COUNTED}
        write_json(folder / f"{self._name()}.json", counted | {"reference": self.collector.reference.fingerprint})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights, and take up the rollout where it was.

        Raises:
            StageError: another number of processes saved it, or the reference is not the one it was.
        """
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        found = read_json(folder / f"{self._name()}.json")
        if found is None:
            saved = len(list(folder.glob("group-*.json")))
            raise StageError(
                f"the checkpoint was saved by {saved} processes, and {self.args.world_size} are running",
                hint=f"--processes {saved}, or --force to begin the stage again",
            )
        if found["reference"] != self.collector.reference.fingerprint:
            raise StageError("the reference model is not the one that the checkpoint was trained against")
        for name in COUNTED:
            setattr(self, name, found[name])
        batches: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(folder / f"{self._name()}.safetensors").items():
            at, _, name = key.partition(".")
            batches.setdefault(int(at), {})[name] = tensor.to(self.args.device)
        self._buffered_inputs = [batches[at] for at in sorted(batches)]

    def _name(self) -> str:
        return f"group-{self.args.process_index}-of-{self.args.world_size}"


class RLOO(Groups, RLOOTrainer, PlainNames):
    """REINFORCE with the mean of the other answers as baseline; the KL is charged in the reward."""

    module = rloo_trainer


class GRPO(Groups, GRPOTrainer, PlainNames):
    """Advantages relative to the group; the KL is part of the loss."""

    module = grpo_trainer


def count_positions(model: nn.Module) -> None:
    """Have a model take its position ids from the mask wherever a call gives it a mask and no positions.

    `generate` gives its own. On the outermost module: peft 0.21 calls the forward of what is in it past its hooks.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if accepts_positions(inner):
        model.register_forward_pre_hook(_with_positions, with_kwargs=True)


def _with_positions(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    if mask is not None and kwargs.get("position_ids") is None and kwargs.get("past_key_values") is None:
        kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return args, kwargs


@torch.no_grad()
def refuse_unless_padding_is_unseen(policy: PreTrainedModel | PeftModel, pad_id: int) -> None:
    """Refuse a model whose logits change when a prompt is padded on the left, as TRL pads it.

    Raises:
        StageError: they do.
    """
    ids = probe(policy)
    plain = logits_of(policy, ids)
    was_training = policy.training
    policy.eval()
    padding = torch.full((1, 3), pad_id, device=ids.device)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], dim=1)
    logits = policy(input_ids=torch.cat([padding, ids], dim=1), attention_mask=mask, use_cache=False).logits.float()
    policy.train(was_training)
    if not near(plain, logits[:, 3:]):
        name = policy.config.model_type
        raise StageError(
            f"a {name} gives other logits behind a padded prompt, and TRL pads prompts on the left",
            hint="use rlhf-ppo, which pads on the right",
        )
