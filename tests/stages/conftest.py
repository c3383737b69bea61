"""A tiny tokenizer and model, made once, and a context that stages and trainers can work in."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmpipe.artifact import StepRecord
from llmpipe.context import Context, Event
from llmpipe.data import storyworld
from llmpipe.stages import tokenizer as tokenizer_stage
from llmpipe.training import adapters, models
from tests.stages.tiny import probed

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


@pytest.fixture
def tokenizer(learned_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 300 tokens with llmpipe's chat template; a test may change it."""
    return deepcopy(learned_tokenizer)


@pytest.fixture(scope="session")
def learned_tokenizer() -> PreTrainedTokenizerFast:
    """What `tokenizer` copies, made once."""
    settings = tokenizer_stage.Settings.model_validate({"vocab_size": 300})
    learned = tokenizer_stage.learn(settings, storyworld.corpus(stories=300, seed=0))
    return PreTrainedTokenizerFast(
        tokenizer_object=learned,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=list(tokenizer_stage.ROLES),
        chat_template=tokenizer_stage.CHAT_TEMPLATE,
    )


@pytest.fixture
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    """Make a fresh model of an architecture, the same one each time."""

    def make(arch: str = "llama", context: int = 64, **config: object) -> PreTrainedModel:
        torch.manual_seed(0)
        return models.build(arch, {**SMALL, **config}, tokenizer=tokenizer, context=context)

    return make


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """A context whose events are kept in `ctx.events`."""
    events: list[Event] = []
    record = StepRecord(name="x", kind="pretrain", stage_version=1, fingerprint="f", seed=3, settings={}, inputs=[])
    (tmp_path / "x").mkdir()
    context = Context(run_dir=tmp_path, step=record, emit=events.append)
    context.events = events  # type: ignore[attr-defined]
    return context


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PeftModel, torch.Tensor]]:
    """What stages saved, as it was in memory, and its logits (TRL's patch runs a copy through the original)."""
    seen: list[tuple[PeftModel, torch.Tensor]] = []
    save = adapters.save_policy

    def watched(policy: Any, *given: Any) -> None:
        seen.append((deepcopy(policy), probed(policy)))
        save(policy, *given)

    monkeypatch.setattr(adapters, "save_policy", watched)
    return seen
