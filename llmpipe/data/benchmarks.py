"""Turn rows into what a benchmark asks: a prompt with choices, with how it goes on, or with its right answer.

The columns that a row needs are those that a task's templates name in braces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from llmpipe.data import Cells, kind
from llmpipe.data.tables import Format, Table
from llmpipe.tasks import ChoicesTask, Prompted, columns_of

MARK = "####"
"""What GSM8K (arXiv:2110.14168) writes before a result."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
BETWEEN_EXAMPLES = "\n\n"


@dataclass(frozen=True, slots=True)
class Asked:
    """One row of a task: `answers` are what may follow the prompt, `gold` is the place of the right one among them.

    `choices` are the answers as they stand in the row, by whose bytes acc_norm divides.
    """

    prompt: str
    answers: list[str]
    choices: list[str]
    gold: int

    @property
    def right(self) -> str:
        """The right answer, as it follows the prompt."""
        return self.answers[self.gold]


def table_of(task: Prompted) -> Table[Asked]:
    """Return how the rows of a task are read."""
    asks = [column for column in columns_of(task.prompt + task.answer) if column != "choice"]
    if isinstance(task, ChoicesTask):
        return Table({task.kind: Format((*asks, "choices", "gold"), (), "", lambda cells: _chosen(cells, task))})
    return Table({task.kind: Format(tuple(asks), (), "", lambda cells: _asked(cells, task))})


def _filled(template: str, cells: Cells, **more: str) -> str:
    """Put a row's cells into a template; a cell has to be text or a number."""
    found = {column: _text(cells, column) for column in columns_of(template) if column not in more}
    return template.format(**found, **more)


def _text(cells: Cells, column: str) -> str:
    value = cells.value[column]
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else cells.text(column)


def _asked(cells: Cells, task: Prompted) -> Asked:
    answer = _filled(task.answer, cells)
    return Asked(_filled(task.prompt, cells), [answer], [answer], 0)


def _chosen(cells: Cells, task: ChoicesTask) -> Asked:
    choices = choices_of(cells)
    gold = gold_of(cells, choices)
    answers = [_filled(task.answer, cells, choice=choice) for choice in choices]
    return Asked(_filled(task.prompt, cells), answers, choices, gold)


def choices_of(cells: Cells) -> list[str]:
    """Return the texts to choose from; what is wrong with them is noted."""
    name, listed = cells.name("choices"), cells.value["choices"]
    if not isinstance(listed, list):
        cells.wrong.append(f"{name} is {kind(listed)}, not a list of texts")
        return []
    if len(listed) < 2:
        cells.wrong.append(f"{name} has {len(listed)}; there must be two or more to choose from")
    wrong = [
        f"{name} {number} is {'empty' if isinstance(choice, str) else f'{kind(choice)}, not text'}"
        for number, choice in enumerate(listed, 1)
        if not isinstance(choice, str) or not choice.strip()
    ]
    cells.wrong.extend(wrong)
    return [] if wrong else listed


def gold_of(cells: Cells, choices: Sequence[str]) -> int:
    """Return which choice is right: its number, counted from 0, or its text."""
    name, value = cells.name("gold"), cells.value["gold"]
    if isinstance(value, str) and choices.count(value) == 1:
        return choices.index(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if choices and not 0 <= value < len(choices):
            cells.wrong.append(f"{name} is {value}; the {len(choices)} choices are numbered from 0")
        return value
    if choices:
        what = f"is {value!r}, which is none of the choices" if isinstance(value, str) else f"is {kind(value)}"
        cells.wrong.append(f"{name} {what}; it must be the number of the right one, from 0, or its text")
    return 0


def number_in(text: str) -> Decimal | None:
    """Return the number behind the last `####`, or else the last one in the text; 1,000 and 1000.00 are the same."""
    _, mark, behind = text.rpartition(MARK)
    found = NUMBER.findall(behind)
    number = (found[:1] if mark else found[-1:]) or [None]
    return None if number[0] is None else Decimal(number[0].replace(",", ""))
