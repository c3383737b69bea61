"""Small worlds for rloo and grpo, put together as the stages do, with a policy and a reward of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, RLOOConfig

from llmpipe import stages
from llmpipe.data.preferences import Prompt
from llmpipe.training import group
from llmpipe.training.group_trainer import GRPO, RLOO
from llmpipe.training.models import set_dropout
from llmpipe.training.ppo.scoring import Asked
from tests.stages.ppo_worlds import OnTokens, llama
from tests.stages.tiny import context_for

TRAINERS: dict[str, tuple[type[RLOO] | type[GRPO], Any]] = {"rloo": (RLOO, RLOOConfig), "grpo": (GRPO, GRPOConfig)}
PROMPTS = [[2, 3], [4, 2, 3, 3], [5], [3, 2, 4]]


def numbers(size: int, *, end: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are numbers."""
    words = models.WordLevel({str(number): number for number in range(size)}, unk_token="0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="0", eos_token=str(end))


def world(
    kind: str,
    folder: Path,
    *,
    reward: Callable[[list[int]], float] = lambda ids: sum(ids) / 20,
    policy: PreTrainedModel | None = None,
    prompts: Sequence[list[int]] = PROMPTS,
    held_out: Sequence[list[int]] = (),
    scorer: Any = None,
    end: int = 1,
    arguments: dict[str, Any] | None = None,
    **settings: Any,
) -> RLOO | GRPO:
    """Make a trainer."""
    policy = policy or llama(7, context=16)
    rollout = {"samples": 16, "samples_per_prompt": 4, "max_new_tokens": 6, **settings.pop("rollout", {})}
    module, (cls, config) = stages.load(kind), TRAINERS[kind]
    options = {"kind": kind, "missing_end_penalty": 0.0, "rollouts": 3, **settings, "rollout": rollout}
    chosen: Any = module.Settings.model_validate(options)
    tokenizer, ctx = numbers(policy.config.vocab_size, end=end), context_for(folder)
    policy.generation_config.eos_token_id = [end]
    set_dropout(policy, 0.0, None)
    given = {"learning_rate": 3e-3, "lr_scheduler_type": "linear", "save_strategy": "no", "seed": 0}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    batches = group.options(chosen, row_tokens=1) | ({} if held_out else {"eval_strategy": "no"})
    own = {**module.DEFAULTS, **given, **quiet, **batches, **(arguments or {})}  # type: ignore[attr-defined]
    args = config(output_dir=str(folder / "checkpoints"), **own)
    scorers = [scorer or OnTokens(reward)]
    asked = [[Asked(Prompt([], text="p"), ids) for ids in side] for side in (prompts, held_out)]
    count = chosen.rollouts * chosen.rollout.samples // chosen.rollout.samples_per_prompt
    trainer = cls(
        policy,
        tokenizer,
        args=args,
        collector=group.collector(chosen, ctx, policy, tokenizer, scorers, ends=(end,), device=torch.device("cpu")),
        asked=asked[0],
        order=[place % len(prompts) for place in range(count)],
        held_out=asked[1],
        say=ctx.say,
    )
    trainer.ctx = ctx  # type: ignore[union-attr]
    trainer.remove_callback(PrinterCallback)
    return trainer
