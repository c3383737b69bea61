"""The options of `lora:`: which of peft.LoraConfig's are not the user's to set, and why. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

DEFAULTS = {"target_modules": "all-linear"}
"""Ours, where an adapter begins afresh; an adapter that is trained further keeps its own."""

_BASE = "an adapter is trained here, and the model under it stays as it is"
_BEGINNING = "an adapter begins as nothing, so that the model with its adapters off is the one it began from"
_OTHER_LAYERS = "the adapter has to merge into plain weights, for a later stage"

RESERVED = {
    "task_type": "it is a language model's adapter",
    "peft_type": "it is LoRA",
    "peft_version": "PEFT writes it",
    "auto_mapping": "PEFT writes it",
    "inference_mode": "the adapter is trained",
    "base_model_name_or_path": "set `model:` of the stage",
    "revision": "set `revision:` of the model's source",
    "runtime_config": "it is not part of an adapter",
    "bias": _BASE,
    "modules_to_save": _BASE,
    "trainable_token_indices": _BASE,
    "target_parameters": _OTHER_LAYERS,
    "layer_replication": _OTHER_LAYERS,
    "alora_invocation_tokens": _OTHER_LAYERS,
    "arrow_config": _OTHER_LAYERS,
    "megatron_config": _OTHER_LAYERS,
    "megatron_core": _OTHER_LAYERS,
    "init_lora_weights": _BEGINNING,
    "loftq_config": _BEGINNING,
    "eva_config": _BEGINNING,
    "corda_config": _BEGINNING,
    "lora_ga_config": _BEGINNING,
}
"""Options of peft.LoraConfig that are reserved, with the reason or with what to do instead."""

RESERVED_IN_SFT = {name: why for name, why in RESERVED.items() if name != "trainable_token_indices"}
"""A stage that teaches a format may train the rows of its tokens. One that teaches which answers are better may not:
the format is known by then, and good and bad answers are written with the same tokens, which the bad push down."""

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""The names that transformers 5.23 has for one thing."""


Quantize = Annotated[
    Literal["nf4"] | None,
    Field(description="keep the model under the adapter in 4 bits (QLoRA, arXiv:2305.14314); needs a CUDA GPU"),
]


def quantize_problem(quantize: str | None, lora: dict[str, Any] | None) -> str | None:
    """Say why a model cannot be kept in 4 bits, or None."""
    if quantize and lora is None:
        return f"quantize: {quantize} is for the model under an adapter; add lora: {{}}"
    return None


def reference_problem(dropout: float | None, lora: dict[str, Any] | None) -> str | None:
    """Say why a policy that is held to what it was cannot have such dropout, or None."""
    named = "dropout" if dropout else "lora.lora_dropout" if lora and lora.get("lora_dropout") else None
    return named and f"{named} makes the policy differ from the reference before it learns; leave it out"


def dropout_problem(lora: dict[str, Any]) -> str | None:
    """Say why no stage that samples can train with these options, or None."""
    if lora.get("lora_dropout"):
        return "lora.lora_dropout makes the probabilities before and after a step differ; leave it out"
    return None


def ppo_problem(lora: dict[str, Any], value_model: str, trainer: dict[str, Any]) -> str | None:
    """Say why PPO cannot train with these options, or None."""
    if problem := dropout_problem(lora):
        return problem
    for option in CHECKPOINTING:
        if value_model == "separate" and trainer.get(option):
            # peft 0.21 recomputes with the adapter that is active by then, which is the policy's, in the value's pass
            return (
                f"trainer.{option} with lora: gives wrong gradients, for policy and value are adapters on one base; "
                "leave it out, or set value_model: head"
            )
    return None
