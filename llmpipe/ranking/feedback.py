"""What chat and the page of serve keep for training: which of several answers is better, and thumbs.

It goes into the store of the run that the model is of, where `llmpipe rank RUN --export` finds it; of other models,
into one beside the memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from llmpipe.ranking.records import Answer, Asked, Ranking, Thumb
from llmpipe.ranking.store import Store, store_of
from llmpipe.talk.calls import written_out
from llmpipe.talk.engine import Message

ME = "me"
"""Whoever talks, where nobody gave a name."""


@dataclass(frozen=True)
class Told:
    """An answer of a model, and what it answers."""

    prompt: Sequence[Message]
    model: str
    text: str

    @property
    def asked(self) -> Asked:
        """The prompt as the store has it: calls of tools are words."""
        return Asked(written_out(self.prompt))

    @property
    def answers(self) -> list[Answer]:
        """The answer as the store has it."""
        return [Answer(self.text, (self.model,))]


def keep_comparison(answers: Sequence[Told], best: Collection[int], *, beside: Path) -> Path:
    """Keep which of several answers to one prompt are the best, by their places; all are bad where none is.

    The others are equally good. Answers in the same words are one. Returns the store's file.
    """
    texts: dict[str, list[str]] = {}
    for one in answers:
        texts.setdefault(one.text.strip(), []).append(one.model)
    ranks = tuple(1 if text in {answers[place].text.strip() for place in best} else 2 for text in texts)
    path = store_of(answers[min(best, default=0)].model, beside=beside)
    with Store(path) as store:
        given = [Answer(text, tuple(models)) for text, models in texts.items()]
        task = store.add_task("talk", answers[0].asked, given)
        store.keep(Ranking(task, ME, "overall", "ranked" if best else "bad", ranks if best else None))
    return path


def keep_thumb(answer: Told, *, is_good: bool, beside: Path) -> Path:
    """Keep that an answer is good, or bad, in place of what was said of it before. Returns the store's file."""
    path = store_of(answer.model, beside=beside)
    with Store(path) as store:
        store.keep_thumb(Thumb(store.add_task("talk", answer.asked, answer.answers), ME, is_good))
    return path


def thumbs(answers: Iterable[Told], *, beside: Path) -> list[bool | None]:
    """Return for each answer whether it was found good, or bad; None where nothing was said of it."""
    found: list[bool | None] = []
    stores: dict[Path, Store] = {}
    with ExitStack() as stack:
        for one in answers:
            path = store_of(one.model, beside=beside)
            if path not in stores and path.is_file():
                stores[path] = stack.enter_context(Store(path))
            found.append(stores[path].thumb("talk", one.asked, one.answers, ME) if path in stores else None)
    return found
