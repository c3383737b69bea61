"""Imported once by the fork server: torch, the trainers and what they pull in lazily.

Importing a name from transformers or trl is what loads it, so the names below are the point of this file.
"""

import datasets
import torch
import torch.distributed  # noqa: F401
import torch.utils.data  # noqa: F401
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

__all__ = [
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoTokenizer",
    "DPOConfig",
    "DPOTrainer",
    "GenerationConfig",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    "PreTrainedTokenizerFast",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "Tokenizer",
    "Trainer",
    "TrainingArguments",
    "datasets",
    "torch",
]
