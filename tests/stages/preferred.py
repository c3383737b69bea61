"""Preferences, pairs and a reward model to try things on."""

from __future__ import annotations

from typing import Any

import torch

from llmpipe.data import said
from llmpipe.data.preferences import Preference
from llmpipe.training import pairs, reward_model
from llmpipe.training.reward_model import classifier


def preference(chosen: str, rejected: str, *, asked: str = "Say something.", **more: Any) -> Preference:
    return Preference([said("user", asked)], [said("assistant", chosen)], [said("assistant", rejected)], **more)


def reward_of(make_model: Any, tokenizer: Any, criteria: tuple[str, ...] = ("reward",), arch: str = "llama") -> Any:
    model = classifier(make_model(arch), criteria)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    model.config.pad_token_id = tokenizer.pad_token_id
    weights = (1.0,) * len(criteria)
    form = reward_model.RewardFormat("", 2, reward_model.vocabulary_of(tokenizer), criteria, weights)
    return reward_model.RewardModel(model, tokenizer, form)


def encoded(tokenizer: Any, count: int = 6, heads: tuple[str, ...] = ("reward",), **more: Any) -> list[pairs.Pair]:
    made = [preference("yes " * (n + 1), "no " * (2 * n + 1), **more) for n in range(count)]
    return pairs.encode(made, tokenizer, end=2, chat=True, heads=heads)
