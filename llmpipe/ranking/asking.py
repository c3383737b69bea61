"""One annotator's side: which question comes next, its answers shuffled and without their models.

Everybody is asked the same prompts in the same order, so that the first of them have been ranked by all; gold questions
stand among them, and answers in an order, at random for each annotator, the same each time for one seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmpipe.errors import TalkError
from llmpipe.ranking.records import FEWEST, Ranking, Task, Verdict, dense, key_of
from llmpipe.ranking.store import Store


@dataclass(frozen=True)
class Form:
    """How a round is asked: under which criteria, what they mean, how many prompts it has, and the seed."""

    round_id: int
    criteria: Sequence[str]
    guidelines: Mapping[str, str]
    prompts: int
    seed: int


@dataclass(frozen=True)
class Question:
    """What a person sees. `id` says nothing about what it is; `before` is what was said and is taken back."""

    id: str
    criterion: str
    guideline: str
    messages: Sequence[Mapping[str, Any]]
    answers: tuple[str, ...]
    done: int
    of: int
    before: tuple[int, ...] | None = None
    comment: str = ""


class Asking:
    """The questions of one annotator in a round. For one thread at a time; stores may be shared."""

    def __init__(self, store: Store, form: Form, annotator: str) -> None:
        self.store, self.form, self.annotator = store, form, annotator
        self._tasks: list[Task] = []
        self._sampled = 0

    def next(self) -> Question | None:
        """Return the next question that can be asked; None where all are, or answers are still being sampled."""
        done = {(one.task, one.criterion) for one in self.store.rankings(self.annotator)}
        for task, criterion in self._units():
            if (task.id, criterion) not in done:
                return self._question(task, criterion)
        return None

    @property
    def is_waiting(self) -> bool:
        """Whether more questions will come: some prompts have not been answered yet."""
        return self._sampled < self.form.prompts

    def keep(
        self,
        question: str,
        verdict: Verdict,
        ranks: Sequence[int] | None,
        *,
        comment: str = "",
        seconds: float | None = None,
    ) -> None:
        """Keep what the annotator says of a question; `ranks` are those of its answers as they were shown.

        Raises:
            TalkError: there is no such question, or the ranks are not one for each answer.
        """
        task, criterion = self._found(question)
        kept: tuple[int, ...] | None = None
        if verdict == "ranked":
            if ranks is None or len(ranks) != len(task.answers):
                raise TalkError(f"{len(ranks or ())} ranks for {len(task.answers)} answers")
            shown = dict(zip(self._order(task), dense(ranks), strict=True))
            kept = tuple(shown[place] for place in range(len(task.answers)))
        said = Ranking(task.id, self.annotator, criterion, verdict, kept, comment.strip(), seconds=seconds)
        self.store.keep(said)

    def undo(self) -> Question | None:
        """Take the newest ranking back and return its question, with what was said; None where there is none."""
        tasks = {task.id: task for task, _ in self._units()}
        last = self.store.take_back(self.annotator, tasks)
        if last is None:
            return None
        task = tasks[last.task]
        shown = None if last.ranks is None else tuple(last.ranks[place] for place in self._order(task))
        return self._question(task, last.criterion, before=shown, comment=last.comment)

    def _question(
        self, task: Task, criterion: str, *, before: tuple[int, ...] | None = None, comment: str = ""
    ) -> Question:
        units = self._units()
        done = {(one.task, one.criterion) for one in self.store.rankings(self.annotator)}
        missing = (self.form.prompts - self._sampled) * len(self.form.criteria)
        return Question(
            id=self._name(task, criterion),
            criterion=criterion,
            guideline=self.form.guidelines.get(criterion, ""),
            messages=[{"role": turn["role"], "content": turn["content"]} for turn in task.asked.messages],
            answers=tuple(task.answers[place].text.strip() for place in self._order(task)),
            done=sum((one.id, name) in done for one, name in units),
            of=len(units) + missing,
            before=before,
            comment=comment,
        )

    def _found(self, question: str) -> tuple[Task, str]:
        for task, criterion in self._units():
            if self._name(task, criterion) == question:
                return task, criterion
        raise TalkError("there is no such question", hint="load the page again")

    def _name(self, task: Task, criterion: str) -> str:
        return key_of(self.form.seed, self.annotator, task.id, criterion)[:16]

    def _order(self, task: Task) -> list[int]:
        """Return the places of a task's answers in the order in which this annotator sees them."""
        order = list(range(len(task.answers)))
        texts = [answer.text for answer in task.answers]
        random.Random(key_of(self.form.seed, self.annotator, task.asked.key, texts)).shuffle(order)
        return order

    def _units(self) -> list[tuple[Task, str]]:
        """Return every task under every criterion, in the order of asking, as far as there are answers."""
        if not self._tasks or self.is_waiting:
            tasks = self.store.tasks(self.form.round_id)
            self._sampled = sum(task.source == "rank" for task in tasks)
            self._tasks = self._mixed([task for task in tasks if len(task.answers) >= FEWEST])
        return [(task, criterion) for task in self._tasks for criterion in self.form.criteria]

    def _mixed(self, tasks: Sequence[Task]) -> list[Task]:
        """Put gold questions among the others, where this annotator does not expect them."""
        chance = random.Random(key_of(self.form.seed, self.annotator, "gold"))
        gold = [task for task in tasks if task.gold is not None]
        chance.shuffle(gold)
        before = sorted(chance.randrange(max(1, self.form.prompts)) for _ in gold)
        mixed: list[Task] = []
        for place, task in enumerate(task for task in tasks if task.gold is None):
            mixed += [one for one, at in zip(gold, before, strict=True) if at == place]
            mixed.append(task)
        rest = () if self.is_waiting else (one for one in gold if one not in mixed)  # prompts that gave no question
        return [*mixed, *rest]
