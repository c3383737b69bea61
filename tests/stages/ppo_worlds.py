"""Small worlds for PPO in which the best policy is known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llmpipe.data.preferences import Prompt
from llmpipe.training.ppo import core, parts
from llmpipe.training.ppo.rollout import Answer
from llmpipe.training.ppo.scoring import Asked
from llmpipe.training.ppo.trainer import PPOTrainer

Reward = Callable[[list[int]], float]


class Letters:
    """A tokenizer whose tokens are numbers."""

    pad_token_id = 0

    def batch_decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


class OnTokens:
    """Scores answers by their tokens."""

    names, weights, weight, normalized = ("known",), (1.0,), 1.0, False

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    def scores(self, asked: Sequence[Asked], answers: Sequence[Answer], texts: Sequence[str]) -> Tensor:
        return torch.tensor([[self.reward(answer.ids)] for answer in answers])


def llama(vocab: int, *, seed: int = 0, width: int = 32, layers: int = 1, context: int = 32) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def world(
    folder: Path,
    policy: PreTrainedModel,
    reward: Reward,
    *,
    prompts: Sequence[list[int]],
    ends: tuple[int, ...] = (1,),
    micro_batch: int | None = None,
    held_out: Sequence[list[int]] = (),
    scorers: Sequence[Any] | None = None,
    arguments: dict[str, Any] | None = None,
    **settings: Any,
) -> PPOTrainer:
    """Make a trainer as the stage does, with a policy and a reward of one's own."""
    from llmpipe.stages.rlhf_ppo import Settings
    from tests.stages.tiny import context_for

    defaults = {"missing_end_penalty": 0.0, "reward_clip": None, "value_learning_rate": 3e-3, "value_clip": None}
    chosen = Settings.model_validate({"kind": "rlhf-ppo", **defaults, **settings})
    batches = parts.batches(chosen, row_tokens=1) | ({"eval_strategy": "no"} if not held_out else {})
    if micro_batch:
        rows = chosen.rollout.samples // chosen.minibatches
        batches |= {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": rows // micro_batch}
    args = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        **{
            "learning_rate": 3e-3,
            "adam_epsilon": 1e-5,
            "lr_scheduler_type": "linear",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "save_strategy": "no",
            "seed": 0,
            "ddp_find_unused_parameters": False,
            **batches,
            **(arguments or {}),
        },
    )
    made = scorers or [OnTokens(reward)]
    ctx = context_for(folder)
    collector = parts.collector(chosen, ctx, policy, Letters(), made, ends=ends, device=torch.device("cpu"))
    asked = [[Asked(Prompt([], text="p"), ids) for ids in side] for side in (prompts, held_out)]
    trainer = PPOTrainer(
        collector.model,
        options=parts.options(chosen, made, learning_rate=args.learning_rate),
        collector=collector,
        prompts=asked[0],
        held_out=asked[1],
        price=core.KLPrice(chosen.kl.coefficient, chosen.kl.target, chosen.kl.horizon),
        say=ctx.say,
        progress=ctx.progress,
        args=args,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


PROMPTS = [[2, 3], [4, 2, 3, 3], [5], [3, 2, 4]]


class Watch(TrainerCallback):
    """Keeps the gradients before each step, and counts the steps of each rollout."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.gradients: list[dict[str, Tensor]] = []
        self.steps: list[int] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        named = self.trainer.model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.steps.append(self.trainer.rollouts)


def made(folder: Path, *, arguments: dict[str, Any] | None = None, **settings: Any) -> tuple[PPOTrainer, Watch]:
    rollout = {"samples": 16, "max_new_tokens": 6, **settings.pop("rollout", {})}
    options = {"rollouts": 3, "value_warmup_rollouts": 0, **settings}
    policy = options.pop("policy", None) or llama(7, context=16)
    reward = options.pop("reward", lambda ids: sum(ids) / 20)
    watch = Watch()
    arguments = {"max_grad_norm": 0.0, **(arguments or {})}
    trainer = world(folder, policy, reward, prompts=PROMPTS, rollout=rollout, arguments=arguments, **options)
    watch.trainer = trainer
    trainer.add_callback(watch)
    return trainer, watch


def weights(trainer: PPOTrainer, part: str = "") -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items() if name.startswith(part)}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
