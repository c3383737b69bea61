"""Preferences, pairs and a reward model to try things on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmpipe.data import said
from llmpipe.data.preferences import Preference
from llmpipe.training import adapters, pairs, reward_model
from llmpipe.training.ppo.shared import put
from llmpipe.training.reward_model import RewardFormat, RewardModel, classifier


def preference(chosen: str, rejected: str, *, asked: str = "Say something.", **more: Any) -> Preference:
    return Preference([said("user", asked)], [said("assistant", chosen)], [said("assistant", rejected)], **more)


def reward_of(make_model: Any, tokenizer: Any, criteria: tuple[str, ...] = ("reward",), arch: str = "llama") -> Any:
    model = classifier(make_model(arch), criteria)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    model.config.pad_token_id = tokenizer.pad_token_id
    weights = (1.0,) * len(criteria)
    form = reward_model.RewardFormat("", 2, reward_model.vocabulary_of(tokenizer), criteria, weights)
    return reward_model.RewardModel(model, tokenizer, form)


def reward_adapter(folder: Path, model: Any, tokenizer: Any, base: str = "../m", **lora: Any) -> RewardModel:
    """Write a reward model that is an adapter, moved away from where it begins; `base` is where the model lies."""
    model = classifier(model, ("reward",))
    model.config.pad_token_id = tokenizer.pad_token_id
    adapted = put(model, {"r": 4, **lora}, None)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "score.modules_to_save" in name:
                parameter.normal_(0, 0.2)
    form = RewardFormat(tokenizer.chat_template, 2, reward_model.vocabulary_of(tokenizer), ("reward",), (1.0,))
    reward = RewardModel(adapted.eval(), tokenizer, form)
    reward_model.save(reward, folder, adapters.Beginning(model, tokenizer, None, base, None))
    return reward


def encoded(tokenizer: Any, count: int = 6, heads: tuple[str, ...] = ("reward",), **more: Any) -> list[pairs.Pair]:
    made = [preference("yes " * (n + 1), "no " * (2 * n + 1), **more) for n in range(count)]
    return pairs.encode(made, tokenizer, end=2, chat=True, heads=heads)
