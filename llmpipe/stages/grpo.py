"""grpo: teaches a model to give answers that score high, relative to its other answers. Writes `model/`.

    grpo: {kind: grpo, model: chat, reward: {function: sums.py:exact_match}, data: {path: sums.jsonl}}

Group relative policy optimisation (arXiv:2402.03300): an answer becomes likelier by as much as it scores above the
mean of the answers to the same prompt, in units of their deviation; the price of leaving the reference is part of the
loss. TRL's GRPOTrainer does it, and its options are under `trainer:` (`loss_type`, `scale_rewards`, `epsilon`, …).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmpipe.context import Context, Result
from llmpipe.rollouts import GROUP_RESERVED, GroupSettings
from llmpipe.settings import Artifact, Passthrough

VERSION = 1

DEFAULTS = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.03,
    "adam_epsilon": 1e-5,
    # without it, the gradient of TRL's KL estimate is not that of the KL, and leads to another policy
    "use_bias_correction_kl": True,
}

ADAPTER_DEFAULTS = DEFAULTS | {"learning_rate": 1e-5}
"""An adapter wants a higher rate."""

_IN_PROCESS = GROUP_RESERVED["use_vllm"]

RESERVED = GROUP_RESERVED | {
    "log_completions_hub_repo": "nothing is sent anywhere by a training stage",
    "max_tool_calling_iterations": "answers are sampled in one turn",
    "vllm_importance_sampling_correction": _IN_PROCESS,
    "vllm_importance_sampling_mode": _IN_PROCESS,
    "vllm_importance_sampling_clip_max": _IN_PROCESS,
    "vllm_importance_sampling_clip_min": _IN_PROCESS,
    "vllm_importance_sampling_cap": _IN_PROCESS,
}


class Settings(GroupSettings):
    """What `kind: grpo` understands."""

    kind: Literal["grpo"] = Field("grpo", description="which stage this is")
    trainer: Annotated[dict[str, Any], Passthrough("trl.GRPOConfig", RESERVED)] = Field(
        default_factory=dict, description="options of trl.GRPOConfig, as they are"
    )


def produces(settings: Settings) -> Artifact:
    """Say what comes out."""
    return "causal-lm" if settings.lora is None else "adapter"


def run(settings: Settings, ctx: Context) -> Result:
    """Sample answers to each prompt, compare them, learn; keep the policy that did best on held-out prompts."""
    from trl import GRPOConfig

    from llmpipe.training import group
    from llmpipe.training.group_trainer import GRPO

    defaults = DEFAULTS if settings.lora is None else ADAPTER_DEFAULTS
    return group.train(settings, ctx, GRPO, GRPOConfig, stage_defaults=defaults, artifact=produces(settings))
