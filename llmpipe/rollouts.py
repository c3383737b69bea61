"""The vocabulary of the stages that learn from answers they sample: rlhf-ppo, rloo and grpo. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from llmpipe import lora as adapter_options
from llmpipe.settings import (
    TRAINER_RESERVED,
    Accepts,
    Count,
    DataSources,
    FolderSource,
    HeldOut,
    Passthrough,
    RewardSources,
    Strict,
    TrainingSettings,
)


class Rollout(Strict):
    """How answers are sampled."""

    samples: int = Field(64, gt=0, description="answers per rollout, over all processes")
    samples_per_prompt: int = Field(1, gt=0, description="answers to the same prompt in one rollout")
    max_new_tokens: Count = Field(128, description="longest answer")
    temperature: float = Field(1.0, gt=0, description="of sampling; log-probabilities are taken at the same one")
    stop: list[str] | None = Field(
        None, min_length=1, description="tokens that end an answer; the model's own end tokens when left out"
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.samples % self.samples_per_prompt:
            raise ValueError(
                f"samples ({self.samples}) is not a multiple of samples_per_prompt ({self.samples_per_prompt})"
            )
        return self


class Groups(Rollout):
    """How answers are sampled, several to each prompt, which are compared with each other."""

    samples_per_prompt: int = Field(8, gt=1, description="answers to the same prompt, compared with each other")


class GroupSettings(TrainingSettings):
    """What the stages understand that compare the answers to a prompt with each other: rloo and grpo."""

    model: Annotated[FolderSource | None, Accepts(("causal-lm", "adapter"), same_as="reward")] = Field(
        None, description="the policy to begin from; the model that the reward model began from when left out"
    )
    reward: Annotated[RewardSources | None, Accepts(("reward-model",))] = Field(
        None, description="reward models and functions {function: FILE.py:NAME}; several are added by weight"
    )
    data: Annotated[DataSources | None, Accepts(("dataset",), same_as="reward")] = Field(
        None, description="prompts; of conversations and pairs, what was asked; the reward model's when left out"
    )
    chat: bool = Field(True, description="put prompts through the chat template, where the model has one")
    micro_batch_tokens: Count = Field(
        8192, description="most tokens per forward pass and process; lower it to save memory"
    )
    rollouts: int = Field(50, gt=0, description="how often answers are sampled and learned from")
    rollout: Groups = Field(default_factory=lambda: Groups.model_validate({}), description="how answers are sampled")
    epochs: int = Field(1, gt=0, description="passes over the answers of a rollout")
    minibatches: int = Field(1, gt=0, description="optimizer steps per pass")
    beta: float = Field(0.05, ge=0, description="price of leaving the reference, reward units per nat")
    missing_end_penalty: float = Field(1.0, ge=0, description="reward units that an answer without an end loses")
    evaluate_every: int | None = Field(None, gt=0, description="rollouts between evaluations; a fifth when left out")
    evaluate_answers: int = Field(
        64, gt=0, description="answers to held-out prompts at an evaluation, several to each where they are few"
    )
    lora: Annotated[dict[str, Any] | None, Passthrough("peft.LoraConfig", adapter_options.RESERVED)] = Field(
        None, description="train an adapter; the reference is then the model without it, or the adapter as it came"
    )
    quantize: adapter_options.Quantize = None
    trainer: dict[str, Any] = Field(default_factory=dict, description="options of TRL's trainer, as they are")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.held_out.max_tokens != HeldOut().max_tokens:  # a resolved recipe has every field set
            raise ValueError("held_out.max_tokens is of texts; set evaluate_answers")
        if self.dropout:
            raise ValueError("dropout makes the probabilities before and after a step differ; leave it out")
        if self.rollout.samples % self.minibatches:
            raise ValueError(f"rollout.samples ({self.rollout.samples}) is not a multiple of minibatches")
        if problem := adapter_options.quantize_problem(self.quantize, self.lora):
            raise ValueError(problem)
        if self.lora is not None and (problem := adapter_options.dropout_problem(self.lora)):
            raise ValueError(problem)
        return self


ROLLOUTS_RESERVED = TRAINER_RESERVED | {
    "max_steps": "set `rollouts:`, `epochs:` and `minibatches:` of the stage",
    "num_train_epochs": "set `rollouts:` of the stage",
    "gradient_accumulation_steps": "set `minibatches:`; trainer.per_device_train_batch_size only bounds memory",
    "eval_strategy": "set `evaluate_every:` of the stage",
    "eval_steps": "set `evaluate_every:` of the stage",
    "logging_steps": "every rollout is logged",
    "logging_strategy": "every rollout is logged",
}
"""Options of TrainingArguments that a stage which samples sets itself."""

_BIASED = "log-probabilities are taken of the plain distribution, and anything else sampled would bias every step"
_IN_PROCESS = "answers are sampled in this process; rlhf-ppo with lora: can ask a vLLM server"
_NOT_LOGGED = "answers to held-out prompts are kept in samples.json"
_REFERENCE = "the reference is the model as it came, and stays so"

GROUP_RESERVED = (
    ROLLOUTS_RESERVED
    | {
        "num_generations": "set `rollout: {samples_per_prompt: …}` of the stage",
        "num_generations_eval": "set `evaluate_answers:` of the stage",
        "max_completion_length": "set `rollout: {max_new_tokens: …}` of the stage",
        "temperature": "set `rollout: {temperature: …}` of the stage",
        "generation_batch_size": "set `rollout: {samples: …}` of the stage",
        "steps_per_generation": "set `minibatches:` of the stage",
        "num_iterations": "set `epochs:` of the stage",
        "beta": "set `beta:` of the stage",
        "reward_weights": "set `weight:` of the reward's source",
        "mask_truncated_completions": "set `missing_end_penalty:` of the stage; TRL's hides the answer from itself",
        "shuffle_dataset": "prompts come in a new order each time round",
        "disable_dropout": "dropout is always off",
        "pad_to_multiple_of": "rows are padded to the longest of a batch",
        "chat_template_kwargs": "prompts are written by llmpipe, as every stage writes them",
        "model_init_kwargs": "set `precision:` of the stage",
        "trust_remote_code": "code of a model's repository is never run",
    }
    | dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"), _BIASED)
    | dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _REFERENCE)
    | dict.fromkeys(
        ("log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts"), _NOT_LOGGED
    )
    | dict.fromkeys(
        (
            "use_vllm",
            "vllm_mode",
            "vllm_model_impl",
            "vllm_enable_sleep_mode",
            "vllm_structured_outputs_regex",
            "vllm_server_base_url",
            "vllm_server_host",
            "vllm_server_port",
            "vllm_server_timeout",
            "vllm_group_port",
            "vllm_gpu_memory_utilization",
            "vllm_max_model_length",
            "vllm_tensor_parallel_size",
            "use_transformers_continuous_batching",
            "transformers_continuous_batching_config",
            "use_transformers_paged",
        ),
        _IN_PROCESS,
    )
)
"""Options that TRL's RLOOConfig and GRPOConfig share and that are not the user's to set, with what to do instead."""
