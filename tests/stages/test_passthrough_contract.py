"""What is read from source equals what the imported classes declare (this imports torch)."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from llmpipe.passthrough import option_problems, options_of

pytest.importorskip("trl")
pytest.importorskip("peft")

CLASSES = [
    *(
        "trl.SFTConfig",
        "trl.DPOConfig",
        "trl.GRPOConfig",
        "trl.RewardConfig",
        "trl.KTOConfig",
        "trl.ModelConfig",
    ),
    *("transformers.TrainingArguments", "peft.LoraConfig", "peft.LoHaConfig", "peft.AdaLoraConfig"),
    *("transformers.LlamaConfig", "transformers.Qwen3Config", "transformers.GPT2Config"),
]


def fields_of(config_class: str) -> list[dataclasses.Field]:  # type: ignore[type-arg]
    package, name = config_class.split(".")
    return [field for field in dataclasses.fields(getattr(importlib.import_module(package), name)) if field.init]


@pytest.mark.parametrize("config_class", CLASSES)
def test_the_names_are_those_of_the_dataclass(config_class: str) -> None:
    assert set(options_of(config_class)) == {field.name for field in fields_of(config_class)}


@pytest.mark.parametrize("config_class", CLASSES)
def test_every_default_passes_its_own_check(config_class: str) -> None:
    """A refused default would mean that a type is misread; a default is not always of its declared type."""
    simple = (type(None), bool, int, float, str, list, dict)
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields_of(config_class)
    }
    values = {name: value for name, value in defaults.items() if type(value) in simple}

    assert values
    assert option_problems(config_class, values) == []
