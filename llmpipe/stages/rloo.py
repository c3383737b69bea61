"""rloo: teaches a model to give answers that score high, by comparing its answers to a prompt. Writes `model/`.

    rloo: {kind: rloo, reward: judge, data: {path: prompts.jsonl}, rollouts: 50, rollout: {samples_per_prompt: 8}}

Reinforce, leave one out (arXiv:2402.14740): an answer becomes likelier by as much as it scores above the mean of the
others to the same prompt, less the price of leaving the reference. There is no value network, and the best policy is
that of rlhf-ppo; TRL's RLOOTrainer does it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmpipe.context import Context, Result
from llmpipe.rollouts import GROUP_RESERVED, GroupSettings
from llmpipe.settings import Artifact, Passthrough

VERSION = 1

DEFAULTS = {"learning_rate": 1e-6, "lr_scheduler_type": "linear", "warmup_steps": 0.03, "adam_epsilon": 1e-5}

ADAPTER_DEFAULTS = DEFAULTS | {"learning_rate": 1e-5}
"""An adapter wants a higher rate."""

RESERVED = GROUP_RESERVED | {
    "reward_clip_range": "rewards are compared as they are; bound them in a reward function",
}


class Settings(GroupSettings):
    """What `kind: rloo` understands."""

    kind: Literal["rloo"] = Field("rloo", description="which stage this is")
    trainer: Annotated[dict[str, Any], Passthrough("trl.RLOOConfig", RESERVED)] = Field(
        default_factory=dict, description="options of trl.RLOOConfig, as they are"
    )


def produces(settings: Settings) -> Artifact:
    """Say what comes out."""
    return "causal-lm" if settings.lora is None else "adapter"


def run(settings: Settings, ctx: Context) -> Result:
    """Sample answers to each prompt, compare them, learn; keep the policy that did best on held-out prompts."""
    from trl import RLOOConfig

    from llmpipe.training import group
    from llmpipe.training.group_trainer import RLOO

    defaults = DEFAULTS if settings.lora is None else ADAPTER_DEFAULTS
    return group.train(settings, ctx, RLOO, RLOOConfig, stage_defaults=defaults, artifact=produces(settings))
