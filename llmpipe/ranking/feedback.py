"""What chat and the page of serve keep for training: which of several answers is better, and thumbs.

It goes into the store of the run that the model is of, where `llmpipe rank RUN --export` finds it; of other models,
into one beside the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from llmpipe.ranking.records import Answer, Asked, Ranking, Thumb
from llmpipe.ranking.store import Store, store_of
from llmpipe.talk.engine import Message

Where = Literal["chat", "page"]
ME = "me"
"""Whoever talks, where nobody gave a name."""


def keep_choice(
    where: Where, prompt: Sequence[Message], answers: Mapping[str, str], chosen: str, *, beside: Path
) -> Path:
    """Keep that the answer of the model `chosen` is better than all others; the same words again say nothing.

    Returns the store's file.
    """
    texts: dict[str, list[str]] = {}
    for model, text in answers.items():
        texts.setdefault(text.strip(), []).append(model)
    ranks = tuple(1 if text == answers[chosen].strip() else 2 for text in texts)
    path = store_of(chosen, beside=beside)
    with Store(path) as store:
        task = store.add_task(where, _asked(prompt), [Answer(text, tuple(models)) for text, models in texts.items()])
        store.keep(Ranking(task, ME, "overall", "ranked", ranks))
    return path


def keep_thumb(
    where: Where, prompt: Sequence[Message], model: str, answer: str, *, is_good: bool, beside: Path
) -> Path:
    """Keep that an answer is good, or bad, in place of what was said of it before. Returns the store's file."""
    path = store_of(model, beside=beside)
    with Store(path) as store:
        task = store.add_task(where, _asked(prompt), [Answer(answer, (model,))])
        store.keep_thumb(Thumb(task, ME, is_good))
    return path


def _asked(prompt: Sequence[Message]) -> Asked:
    return Asked([{"role": turn["role"], "content": turn["content"]} for turn in prompt])
