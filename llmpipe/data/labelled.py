"""Turn rows into answers that are labelled good or bad, one at a time, for KTO; a pair gives one of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from llmpipe.data import Cells, Message, Problems, Row, kind, tables, user_words
from llmpipe.data.formats import FORMATS, Conversation
from llmpipe.data.preferences import PREFERENCES, Preference
from llmpipe.data.prompts import before_last_answer
from llmpipe.data.tables import Format, Table


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer to a prompt, and whether it is a good one.

    `text` is set when the row held plain strings, prompt and answer, for models without a chat template. `tools` is
    what the answer may call, as JSON.
    """

    prompt: list[Message]
    answer: list[Message]
    is_good: bool
    text: tuple[str, str] | None = None
    tools: str | None = None

    @property
    def asked(self) -> str:
        """What decides on which side of a split it falls; without a prompt, that is the answer."""
        return user_words(self.prompt) or self.answer[-1]["content"]


def labelled(
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    problems: Problems | None = None,
) -> Iterator[tuple[Row, Labelled]]:
    """Yield each good row with its answer, or one after the other where it has several; then raise all problems.

    Raises:
        DataError: with the problems of all rows; at once for a first row that fits no format or has no label.
    """
    table = Table(LABELLED, _unlabelled, "name the column that says which are good: columns: {label: YOURS}")
    for row, found in tables.converted(rows, table, columns=columns, format=format, problems=problems):
        yield from ((row, one) for one in found)


def _unlabelled(value: Mapping[str, object]) -> str | None:
    chats, pairs = (
        [form for form in table.values() if set(form.needs) <= set(value)] for table in (FORMATS, PREFERENCES)
    )
    if "label" in value or pairs or not chats:
        return None
    return "these are answers without a label; kto learns from answers labelled true (good) or false, and from pairs"


def _of_pairs(cells: Cells, *, convert: Callable[[Cells], list[Preference]]) -> list[Labelled]:
    return [
        Labelled(pair.prompt, answer, is_good, (pair.text[0], pair.text[side]) if pair.text else None, pair.tools)
        for pair in convert(cells)
        for side, answer, is_good in ((1, pair.chosen, True), (2, pair.rejected, False))
    ]


def _of_conversation(cells: Cells, *, form: Format[Conversation]) -> list[Labelled]:
    """Judge the last answer of a conversation; what is said before it is the prompt."""
    found, label = form.convert(cells), cells.value["label"]
    if not isinstance(label, bool):
        cells.wrong.append(f"{cells.name('label')} is {kind(label)}, not true or false")
    prompt = before_last_answer(found.messages)
    answer = found.messages[len(prompt) :]
    plain = all(isinstance(cells.value[column], str) for column in form.needs)
    told = plain and not any(message["role"] == "assistant" for message in prompt)
    text = ("\n\n".join(message["content"] for message in prompt), answer[-1]["content"]) if told and answer else None
    return [Labelled(prompt, answer, bool(label), text, found.tools)]


LABELLED: dict[str, Format[list[Labelled]]] = {
    **{
        name: Format(form.needs, form.also, form.about, partial(_of_pairs, convert=form.convert))
        for name, form in PREFERENCES.items()
    },
    **{
        f"{name}-label": Format(
            (*form.needs, "label"), form.also, f"{form.about}, good or bad", partial(_of_conversation, form=form)
        )
        for name, form in FORMATS.items()
        if name != "text"
    },
}
"""The formats by name, as they are tried and help lists them: pairs, and conversations with a label."""
