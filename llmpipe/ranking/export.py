"""From rankings to what trains: rows that `reward` and `dpo` read, and answers labelled good or bad for `kto`.

A ranking says which answer is better, not that one is good; a thumb, or that all are bad, says nothing of which is
better. So the first become rankings or pairs, ties giving no pair, and the others labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmpipe.artifact import write_text
from llmpipe.errors import Problem, UsageError
from llmpipe.ranking.agreement import left_out, preferred
from llmpipe.ranking.records import FEWEST, Asked, Ranking, Task, Thumb
from llmpipe.ranking.store import Store

Form = Literal["rankings", "pairs", "kto"]
Row = dict[str, Any]
OVERALL = "overall"
"""The criterion that a reward model needs no name for."""


@dataclass
class Exported:
    """What was written: rows, the pairs in them, what gave none, and who was left out for which share of gold."""

    rows: int = 0
    pairs: int = 0
    ties: int = 0
    all_bad: int = 0
    skipped: int = 0
    left_out: dict[str, float | None] = field(default_factory=dict)


def export(
    store: Store, to: Path, form: Form, *, criteria: Sequence[str] = (), least_gold: float | None = None
) -> Exported:
    """Write JSON lines, all of them or none; where criteria are named, of rankings under these alone.

    Raises:
        UsageError: the file is no name for JSON lines, or there is nothing to write.
    """
    if to.suffix != ".jsonl":
        raise UsageError(Problem("is no name for JSON lines", where=str(to)), hint=f"{to.with_suffix('.jsonl')}")
    tasks = {task.id: task for task in store.tasks()}
    rankings, thumbs = store.rankings(), store.thumbs()
    done = Exported()
    if least_gold is not None:
        done.left_out = left_out(tasks, rankings, least_gold)
        # whoever only gave thumbs was asked no gold either
        done.left_out |= {one.annotator: None for one in thumbs if one.annotator not in {r.annotator for r in rankings}}
    rankings = [one for one in rankings if one.annotator not in done.left_out and tasks[one.task].gold is None]
    rankings = [one for one in rankings if not criteria or one.criterion in criteria]
    thumbs = [one for one in thumbs if one.annotator not in done.left_out]
    _count(done, tasks, rankings)
    rows = list(_labels(tasks, rankings, thumbs) if form == "kto" else _compared(tasks, rankings, form))
    if not rows:
        what = "no thumb, and nobody found all answers bad" if form == "kto" else "no ranking says which is better"
        raise UsageError(f"there is nothing to write: {what}", hint="llmpipe rank RUN --show says what there is")
    write_text(to, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    done.rows = len(rows)
    return done


def _count(done: Exported, tasks: Mapping[int, Task], rankings: Sequence[Ranking]) -> None:
    for one in rankings:
        done.skipped += one.verdict == "skipped"
        done.all_bad += one.verdict == "bad"
        if one.verdict == "ranked":
            better = preferred(one, len(tasks[one.task].answers)).values()
            done.pairs += sum(value != 0 for value in better)
            done.ties += sum(value == 0 for value in better)


def _compared(tasks: Mapping[int, Task], rankings: Sequence[Ranking], form: Form) -> Iterator[Row]:
    """Yield a row for each ranking, or for each pair of which one is better."""
    for one in rankings:
        task = tasks[one.task]
        if one.verdict != "ranked" or one.ranks is None or len(task.answers) < FEWEST or len(set(one.ranks)) == 1:
            continue
        judged = {} if one.criterion == OVERALL else {"criterion": one.criterion}
        models = [list(answer.models) for answer in task.answers]
        if form == "rankings":
            texts = [answer.text for answer in task.answers]
            row = {"prompt": _prompt(task.asked), "answers": texts, "ranks": list(one.ranks)}
            yield row | judged | {"models": models} | _provenance(task, one)
            continue
        for (i, j), better in preferred(one, len(task.answers)).items():
            if better:
                best, worst = (i, j) if better > 0 else (j, i)
                pair = {
                    "prompt": _prompt(task.asked),
                    "chosen": _said(task, best),
                    "rejected": _said(task, worst),
                }
                by = {"chosen_models": models[best], "rejected_models": models[worst]}
                yield pair | judged | by | _provenance(task, one)


def _labels(tasks: Mapping[int, Task], rankings: Sequence[Ranking], thumbs: Sequence[Thumb]) -> Iterator[Row]:
    """Yield a row for each thumb, and for each answer of those that are all bad."""
    judged: list[tuple[Ranking | Thumb, list[tuple[int, bool]]]] = [(one, [(0, one.is_good)]) for one in thumbs]
    bad = (one for one in rankings if one.verdict == "bad")
    judged += [(one, [(place, False) for place in range(len(tasks[one.task].answers))]) for one in bad]
    for one, labels in judged:
        task = tasks[one.task]
        for place, is_good in labels:
            row = {"prompt": _prompt(task.asked), "completion": _said(task, place), "label": is_good}
            yield row | {"models": list(task.answers[place].models)} | _provenance(task, one)


def _prompt(asked: Asked) -> str | list[dict[str, Any]]:
    """Write a prompt as it came: a plain text stays one, for models without a chat template."""
    return asked.text if asked.text is not None else [dict(turn) for turn in asked.messages]


def _said(task: Task, place: int) -> str | list[dict[str, str]]:
    """Write an answer as its prompt is written."""
    text = task.answers[place].text
    return text if task.asked.text is not None else [{"role": "assistant", "content": text}]


def _provenance(task: Task, said: Ranking | Thumb) -> Row:
    told: Row = {"annotator": said.annotator, "when": said.when, "source": task.source}
    return told | ({"comment": said.comment} if isinstance(said, Ranking) and said.comment else {})
