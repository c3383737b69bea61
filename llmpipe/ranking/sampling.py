"""The answers that are ranked: some to each prompt, by models that take turns, with fixed seeds."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from llmpipe.errors import LlmpipeError
from llmpipe.ranking.records import Answer, Asked, key_of
from llmpipe.ranking.store import Store
from llmpipe.talk import sent
from llmpipe.talk.engine import Engine, Sampling

TRIES = 3
"""How often an answer is sampled at most that is empty, or the same as another one to its prompt."""
AT_ONCE = 4
"""How many prompts are answered together."""


@dataclass(frozen=True)
class Round:
    """Prompts, the models that answer them, how many answers each prompt gets, and how they are sampled."""

    prompts: Sequence[Asked]
    models: Sequence[str]
    count: int
    seed: int
    how: Sampling

    @property
    def key(self) -> str:
        """What tells it from other rounds."""
        how = (self.how.temperature, self.how.top_p, self.how.max_new_tokens)
        return key_of([one.key for one in self.prompts], list(self.models), self.count, self.seed, how)

    def settings(self) -> dict[str, Any]:
        """Return it for the store."""
        prompts = [{"messages": list(one.messages), "text": one.text} for one in self.prompts]
        how = {"temperature": self.how.temperature, "max_new_tokens": self.how.max_new_tokens}
        return {"prompts": prompts, "models": list(self.models), "count": self.count, "seed": self.seed, "how": how}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Round:
        """Read what `settings` returned."""
        prompts = [Asked(one["messages"], one["text"]) for one in settings["prompts"]]
        return cls(prompts, settings["models"], settings["count"], settings["seed"], Sampling(**settings["how"]))

    def slots(self, place: int) -> list[tuple[str, int]]:
        """Return the model of each answer to a prompt, and how many it gave before; another one begins each time."""
        turns = [self.models[(place + turn) % len(self.models)] for turn in range(self.count)]
        return [(model, turns[:turn].count(model)) for turn, model in enumerate(turns)]


def answers(found: Round, engines: Mapping[str, Engine], place: int) -> list[Answer]:
    """Have the models answer the prompt of a place; what several said in the same words is one answer.

    Raises:
        TalkError: a model or a server fails.
    """
    asked, slots = found.prompts[place], found.slots(place)
    said: dict[str, tuple[str, list[str]]] = {}
    for attempt in range(TRIES):
        with ThreadPoolExecutor(len(slots)) as pool:
            texts = list(pool.map(lambda slot: _answer(found, engines[slot[0]], asked, slot, attempt), slots))  # noqa: B023
        again = []
        for slot, text in zip(slots, texts, strict=True):
            if text.strip() and text.strip() not in said:
                said[text.strip()] = (text, [engines[slot[0]].name])
            else:
                again.append((slot, text.strip()))
        slots = [slot for slot, _ in again]
        if not slots:
            break
    for slot, same in again:
        if same in said and engines[slot[0]].name not in said[same][1]:
            said[same][1].append(engines[slot[0]].name)
    return [Answer(text, tuple(models)) for text, models in said.values()]


def _answer(found: Round, engine: Engine, asked: Asked, slot: tuple[str, int], attempt: int) -> str:
    """Return an answer, or nothing where the prompt leaves no room for one."""
    messages = [dict(turn) for turn in asked.messages]
    if engine.count(messages) >= engine.context:
        return ""
    seed = int(key_of(found.seed, asked.key, *slot, attempt)[:8], 16) >> 1
    return "".join(piece.text for piece in sent.Asked(engine, replace(found.how, seed=seed)).answer(messages))


class Sampler(threading.Thread):
    """Samples what a round still lacks, prompt by prompt, while people rank; `failure` says why it gave up."""

    def __init__(self, store: Store, round_id: int, found: Round, engines: Mapping[str, Engine]) -> None:
        super().__init__(name="sampler", daemon=True)
        self.failure: LlmpipeError | None = None
        self._store, self._round_id, self._found, self._engines = store, round_id, found, engines
        self._is_over = threading.Event()

    def run(self) -> None:
        """Sample."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for place in missing(self._store, self._round_id, self._found):
                pool.submit(self._sample, place)

    def _sample(self, place: int) -> None:
        if self._is_over.is_set():
            return
        try:
            given = answers(self._found, self._engines, place)
            self._store.add_task("rank", self._found.prompts[place], given, round_id=self._round_id, place=place)
        except LlmpipeError as failure:
            self.failure = failure
            self._is_over.set()

    def end(self) -> None:
        """Stop after the prompts that are being answered, and wait for these."""
        self._is_over.set()
        if self.is_alive():
            self.join()


def missing(store: Store, round_id: int, found: Round) -> list[int]:
    """Return the places of the prompts that have not been answered."""
    there = store.places(round_id)
    return [place for place in range(len(found.prompts)) if place not in there]
